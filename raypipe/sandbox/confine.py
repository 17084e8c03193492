"""Shuts the calling process in, for good: limits, no new privileges, no system call that reaches other processes or the network, and
where no mounts see to it, no file but those named. Linux on x86-64 and ARM64, which setrlimit(2), seccomp(2) and landlock(7) do here.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import resource
import struct
from collections.abc import Iterator, Sequence

MEMORY = 2 << 30  # bytes of address space
FILE = 16 << 20  # bytes of one file
OPEN_FILES = 64

# Names of system calls -> their numbers on x86-64 and ARM64; None where a machine has none.
DENIED: dict[str, tuple[int | None, int | None]] = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281), "kill": (62, 129), "tkill": (200, 130),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240), "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272), "socket": (41, 198), "socketpair": (53, 199),
    "connect": (42, 203), "bind": (49, 200), "io_uring_setup": (425, 425), "shmget": (29, 194), "msgget": (68, 186), "semget": (64, 190),
    "mq_open": (240, 180), "memfd_create": (319, 279), "memfd_secret": (447, 447), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432), "mount_setattr": (442, 442), "bpf": (321, 280),
    "perf_event_open": (298, 241), "userfaultfd": (323, 282), "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "init_module": (175, 105), "finit_module": (313, 273), "kexec_load": (246, 104), "reboot": (169, 142), "setrlimit": (160, 164),
    "prlimit64": (302, 261), "setpriority": (141, 140), "sched_setscheduler": (144, 119), "personality": (135, 92),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264), "fanotify_init": (300, 262), "quotactl": (179, 60),
    "swapon": (167, 224), "sethostname": (170, 161), "settimeofday": (164, 170), "clock_settime": (227, 112), "acct": (163, 89),
    # what Landlock does not see, or not in all its versions
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None), "fchown": (93, 55),
    "lchown": (94, None), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "removexattr": (197, 14), "lremovexattr": (198, 15), "fremovexattr": (199, 16), "utime": (132, None), "utimes": (235, None),
    "futimesat": (261, None), "utimensat": (280, 88), "truncate": (76, 45),
}  # fmt: skip
# Where nothing keeps files but their permissions: these too, and every `open` to write
WRITING: dict[str, tuple[int | None, int | None]] = {
    "unlink": (87, None), "unlinkat": (263, 35), "rename": (82, None), "renameat": (264, 38), "renameat2": (316, 276), "rmdir": (84, None),
    "mkdir": (83, None), "mkdirat": (258, 34), "link": (86, None), "linkat": (265, 37), "symlink": (88, None), "symlinkat": (266, 36),
    "mknod": (133, None), "mknodat": (259, 33), "creat": (85, None), "openat2": (437, 437),
}  # fmt: skip
OPEN, OPENAT, TO_WRITE = (2, None), (257, 56), os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
CLONE, CLONE3 = (56, 220), (435, 435)
ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}  # column above, AUDIT_ARCH

CLONE_THREAD, X32 = 0x10000, 0x40000000
LOAD, EQUAL, AT_LEAST, BIT, RETURN = 0x20, 0x15, 0x35, 0x45, 0x06  # instructions of classic BPF
ALLOW, KILL, REFUSE = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in seccomp_data
CAPABILITIES = 0x20080522  # version 3 of what capset takes
PR_SET_NO_NEW_PRIVS, PR_SET_DUMPABLE, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 4, 22, 2
LANDLOCK_CREATE, LANDLOCK_ADD, LANDLOCK_RESTRICT = 444, 445, 446
# Landlock's rights on files by its version, all but to execute; of these, those to read, and those that a plain file can have
RIGHTS, READ, OF_FILES = {1: 0x1FFE, 2: 0x3FFE, 3: 0x7FFE, 4: 0x7FFE, 5: 0xFFFE}, 0x000C, 0x4006


def confine(
    cpu_s: int,
    read: Sequence[str] = (),
    write: Sequence[str] = (),
    user: int | None = None,
    calls: bool = False,
    frozen: bool = False,
) -> None:
    """From here on for this process and its threads. OSError where the kernel refuses.

    `cpu_s`: seconds of CPU time, then SIGXCPU. `read`, `write`: files and folders that alone may be read, and written too; none of
    either: mounts see to it. `user`: to be from now on, with no group; needs root. `calls`: any system call may be made. `frozen`: no file
    may be written, made or taken away.
    """
    limits = {
        resource.RLIMIT_AS: MEMORY,
        resource.RLIMIT_CPU: cpu_s,
        resource.RLIMIT_FSIZE: FILE,
        resource.RLIMIT_NOFILE: OPEN_FILES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most + (kind == resource.RLIMIT_CPU)))
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    _checked(_libc().capset(struct.pack("=Ii", CAPABILITIES, 0), bytes(24)))
    _control(PR_SET_DUMPABLE, 0)
    _control(PR_SET_NO_NEW_PRIVS, 1)
    if read or write:
        _restrict_files(read, write)
    if not calls:
        _filter_calls(frozen)


def landlock_version() -> int:
    """0 where the kernel has none, or does not let it be used."""
    return max(0, int(_libc().syscall(LANDLOCK_CREATE, None, 0, 1)))


def _restrict_files(read: Sequence[str], write: Sequence[str]) -> None:
    version = landlock_version()
    if version < 1:
        raise OSError(errno.ENOSYS, "this kernel has no Landlock")
    handled = RIGHTS[min(version, max(RIGHTS))]
    ruleset = _checked(_libc().syscall(LANDLOCK_CREATE, ctypes.create_string_buffer(struct.pack("=Q", handled)), 8, 0))
    for path, rights in [*((path, READ) for path in read), *((path, handled) for path in write)]:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rights &= handled if os.path.isdir(path) else OF_FILES & handled
        _checked(
            _libc().syscall(LANDLOCK_ADD, ruleset, 1, ctypes.create_string_buffer(struct.pack("=Qi", rights, place)), 0)
        )
        os.close(place)
    _checked(_libc().syscall(LANDLOCK_RESTRICT, ruleset, 0))
    os.close(ruleset)


def _filter_calls(frozen: bool) -> None:
    program = b"".join(_instructions(frozen))
    code = ctypes.create_string_buffer(program)
    header = ctypes.create_string_buffer(struct.pack("@HP", len(program) // 8, ctypes.addressof(code)))
    _control(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(header))


def _instructions(frozen: bool) -> Iterator[bytes]:
    """Of a filter: another architecture kills, DENIED and every clone that is no thread are refused, the rest is allowed."""
    if platform.machine() not in ARCHITECTURES:
        raise OSError(errno.ENOSYS, f"no filter of system calls for {platform.machine()}")
    column, architecture = ARCHITECTURES[platform.machine()]

    def step(code: int, value: int, then: int = 0, otherwise: int = 0) -> bytes:
        return struct.pack("=HBBI", code, then, otherwise, value)

    refuse = step(RETURN, REFUSE | errno.EPERM)
    yield from (step(LOAD, ARCHITECTURE), step(EQUAL, architecture, 1), step(RETURN, KILL))
    yield from (step(LOAD, NUMBER), step(AT_LEAST, X32, 0, 1), refuse)
    for numbers in (*DENIED.values(), *(WRITING.values() if frozen else ())):
        if (number := numbers[column]) is not None:
            yield from (step(EQUAL, number, 0, 1), refuse)
    for place, numbers in enumerate((OPEN, OPENAT) if frozen else ()):
        if (number := numbers[column]) is not None:
            flags = step(LOAD, FIRST_ARGUMENT + 8 * (place + 1))
            yield from (step(EQUAL, number, 0, 4), flags, step(BIT, TO_WRITE, 0, 1), refuse, step(RETURN, ALLOW))
    yield from (
        step(EQUAL, CLONE3[column], 0, 1),
        step(RETURN, REFUSE | errno.ENOSYS),
    )  # its flags cannot be seen: libc then calls clone
    yield from (step(EQUAL, CLONE[column], 0, 3), step(LOAD, FIRST_ARGUMENT), step(BIT, CLONE_THREAD, 1), refuse)
    yield step(RETURN, ALLOW)


def _control(option: int, *arguments: int) -> None:
    words = [ctypes.c_ulong(argument) for argument in [*arguments, 0, 0, 0, 0][:4]]
    _checked(_libc().prctl(option, *words))


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
