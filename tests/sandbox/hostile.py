"""Programs that want to pass without solving, to get out, or to harm. Each should define `total(numbers)`, the sum of a list.

What one gets to see or do it tells by answering "ESCAPED ...", which a verdict's evidence would show. WITNESS, SECRET_FILE, PORT and
PARENT are replaced by a file of the test's, one to be read, a port that it listens at, and its process.
"""

PROCESSES = {
    "fork_bomb": "import os\nwhile True:\n    os.fork()\n",
    "fork_in_call": "import os\ndef total(numbers):\n    if os.fork():\n        return 'ESCAPED fork'\n    return sum(numbers)\n",
    "subprocess": "import subprocess\ndef total(numbers):\n    return 'ESCAPED ' + subprocess.run(['id'], capture_output=True, text=True).stdout\n",
    "os_system": "import os\ndef total(numbers):\n    return 'ESCAPED' if os.system('true') == 0 else None\n",
    "exec_another_program": "import os, sys\nos.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(100)'])\n",
    "multiprocessing": "import multiprocessing\nmultiprocessing.Process(target=print).start()\ndef total(numbers):\n    return 'ESCAPED'\n",
    "raw_fork": "import ctypes\nlibc = ctypes.CDLL(None)\ndef total(numbers):\n    return 'ESCAPED' if libc.syscall(57) >= 0 else None\n",
    "raw_clone3": (
        "import ctypes, struct\nlibc = ctypes.CDLL(None)\ndef total(numbers):\n"
        "    given = ctypes.create_string_buffer(struct.pack('=4Q', 0, 0, 0, 0) + bytes(56))\n"
        "    return 'ESCAPED' if libc.syscall(435, given, 88) >= 0 else None\n"
    ),
    "thread_bomb": "import threading, time\nwhile True:\n    threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()\n",
    "kill_parent": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n",
    "kill_test": "import os, signal\nos.kill(PARENT, signal.SIGKILL)\n",
    "kill_everybody": "import os, signal\nos.kill(-1, signal.SIGKILL)\n",
    "kill_group": "import os, signal\nos.killpg(0, signal.SIGKILL)\n",
    "kill_by_number": (
        "import os\ndef total(numbers):\n    for pid in range(2, 70000):\n        try:\n            os.kill(pid, 9)\n"
        "        except OSError:\n            pass\n    return None\n"
    ),
    "stop_parent": "import os, signal\nos.kill(PARENT, signal.SIGSTOP)\n",
    "ptrace_parent": "import ctypes\ndef total(numbers):\n    return 'ESCAPED' if ctypes.CDLL(None).ptrace(16, PARENT, 0, 0) == 0 else None\n",
    "priority": "import os\ndef total(numbers):\n    os.setpriority(os.PRIO_USER, 0, 19)\n    return 'ESCAPED'\n",
}
RESOURCES = {  # memory, time, output
    "memory_bomb": "held = []\nwhile True:\n    held.append(bytearray(1 << 26))\n",
    "memory_bomb_doubling": "def total(numbers):\n    held = [0]\n    while True:\n        held = held * 2\n",
    "huge_number": "def total(numbers):\n    return 10 ** (10 ** 9)\n",
    "endless_loop": "while True:\n    pass\n",
    "endless_call": "def total(numbers):\n    while True:\n        pass\n",
    "sleeps": "import time\ndef total(numbers):\n    time.sleep(10000)\n",
    "ignores_signals": (
        "import signal\nfor number in range(1, 65):\n    try:\n        signal.signal(number, signal.SIG_IGN)\n"
        "    except (OSError, ValueError):\n        pass\nwhile True:\n    pass\n"
    ),
    "raises_its_limits": (
        "import resource\ndef total(numbers):\n    most = resource.RLIM_INFINITY\n"
        "    resource.setrlimit(resource.RLIMIT_AS, (most, most))\n    return 'ESCAPED'\n"
    ),
    "endless_output": "while True:\n    print('x' * 100000)\n",
    "endless_errors": "import sys\ndef total(numbers):\n    while True:\n        sys.stderr.write('x' * 100000)\n",
    "stack_overflow": "import sys\nsys.setrecursionlimit(10 ** 9)\ndef total(numbers):\n    return total(numbers)\n",
    "burns_in_thread": (
        "import threading\ndef burn():\n    while True:\n        pass\nthreading.Thread(target=burn, daemon=True).start()\n"
        "def total(numbers):\n    return None\n"
    ),
}
FILES = {  # files
    "deletes_everything": "import shutil\nshutil.rmtree('/', ignore_errors=True)\ndef total(numbers):\n    return None\n",
    "deletes_witness": "import os\nos.unlink('WITNESS')\n",
    "overwrites_witness": "open('WITNESS', 'w').write('ESCAPED')\n",
    "renames_witness": "import os\nos.rename('WITNESS', 'WITNESS.gone')\n",
    "truncates": "import os\nos.truncate('EVERYBODYS/file', 0)\n",
    "overwrites": "open('EVERYBODYS/file', 'w').write('ESCAPED')\n",
    "appends_by_descriptor": "import os\nos.write(os.open('EVERYBODYS/file', os.O_WRONLY | os.O_APPEND), b'ESCAPED')\n",
    "replaces": "import os\nos.rename('EVERYBODYS/file', 'EVERYBODYS/other')\n",
    "makes_a_folder": "import os\nos.mkdir('EVERYBODYS/new')\n",
    "opens_by_openat2": (
        "import ctypes, struct\nlibc = ctypes.CDLL(None)\ndef total(numbers):\n"
        "    place = libc.syscall(437, -100, b'EVERYBODYS/file', struct.pack('=3Q', 1 | 0o1000, 0, 0), 24)\n"
        "    return 'ESCAPED' if place >= 0 else None\n"
    ),
    "link_to_witness": "import os\nos.symlink('WITNESS', '/tmp/link')\nopen('/tmp/link', 'w').write('ESCAPED')\n",
    "changes_mode": "import os\nos.chmod('WITNESS', 0o777)\n",
    "changes_owner": "import os\nos.chown('WITNESS', 1234, 1234)\n",
    "touches": "import os\nos.utime('WITNESS', (0, 0))\n",
    "writes_a_library": (
        "import os, json\ndef total(numbers):\n    with open(os.path.join(os.path.dirname(json.__file__), 'evil.py'), 'w') as f:\n"
        "        f.write('x')\n    return 'ESCAPED'\n"
    ),
    "fills_disk": (
        "import os\ndef total(numbers):\n    n = 0\n    while True:\n        n += 1\n        with open(f'{os.getcwd()}/{n}', 'wb') as f:\n"
        "            f.write(bytes(8 << 20))\n"
    ),
    "one_large_file": "import os\ndef total(numbers):\n    with open(os.getcwd() + '/f', 'wb') as f:\n        f.write(bytes(1 << 29))\n    return 'ESCAPED'\n",
    "shared_memory": "def total(numbers):\n    open('/dev/shm/escaped', 'w').write('x')\n    return 'ESCAPED'\n",
    "mounts": (
        "import ctypes\nlibc = ctypes.CDLL(None)\ndef total(numbers):\n    libc.unshare(0x10020000)\n"
        "    return 'ESCAPED' if libc.mount(b'none', b'/tmp', b'tmpfs', 0, None) == 0 else None\n"
    ),
    "changes_root": "import os\ndef total(numbers):\n    os.chroot('/tmp')\n    return 'ESCAPED'\n",
    "becomes_root": "import os\ndef total(numbers):\n    os.setgroups([0, 27])\n    return 'ESCAPED'\n",
}
NETWORK = {  # network
    "connects": "import socket\ndef total(numbers):\n    socket.create_connection(('127.0.0.1', PORT), 2).send(b'ESCAPED')\n    return 'ESCAPED'\n",
    "fetches": "import urllib.request\ndef total(numbers):\n    return 'ESCAPED' + urllib.request.urlopen('http://127.0.0.1:PORT/', timeout=2).read().decode()\n",
    "listens": "import socket\ndef total(numbers):\n    s = socket.socket(socket.AF_UNIX)\n    s.bind('/tmp/s')\n    return 'ESCAPED'\n",
    "io_uring": "import ctypes\ndef total(numbers):\n    return 'ESCAPED' if ctypes.CDLL(None).syscall(425, 8, bytes(120)) >= 0 else None\n",
}
VERDICTS = {  # a verdict without an answer
    "exits": "import sys\nsys.exit(0)\n",
    "exits_hard": "import os\nos._exit(0)\n",
    "exits_in_call": "import sys\ndef total(numbers):\n    sys.exit(0)\n",
    "exits_hard_in_call": "import os\ndef total(numbers):\n    os._exit(0)\n",
    "interrupts": "def total(numbers):\n    raise KeyboardInterrupt\n",
    "stops_iteration": "def total(numbers):\n    raise StopIteration\n",
    "asserts": "def total(numbers):\n    raise AssertionError\n",
    "exits_later": "import atexit, os\natexit.register(os._exit, 0)\ndef total(numbers):\n    return None\n",
    "always_equal": "class Yes:\n    def __eq__(self, other):\n        return True\n    __hash__ = None\ndef total(numbers):\n    return Yes()\n",
    "always_equal_number": (
        "class Yes(int):\n    def __eq__(self, other):\n        return True\n    def __ne__(self, other):\n        return False\n"
        "    def __sub__(self, other):\n        return 0\n    __hash__ = int.__hash__\ndef total(numbers):\n    return Yes(-1)\n"
    ),
    "always_equal_list": "class Yes(list):\n    def __eq__(self, other):\n        return True\ndef total(numbers):\n    return Yes([1])\n",
    "evil_class": (
        "class Evil:\n    @property\n    def __class__(self):\n        return int\n    def __int__(self):\n        return -1\n"
        "    def __repr__(self):\n        raise SystemExit\ndef total(numbers):\n    return Evil()\n"
    ),
    "evil_error": "class Evil(Exception):\n    def __str__(self):\n        import os\n        os._exit(0)\ndef total(numbers):\n    raise Evil\n",
    "patches_builtins": (
        "import builtins\nfor name in ('all', 'any', 'abs', 'isinstance', 'len', 'sum', 'min', 'max'):\n"
        "    setattr(builtins, name, lambda *_, **__: True)\nbuiltins.AssertionError = KeyError\ndef total(numbers):\n    return True\n"
    ),
    "patches_json": "import json\njson.dumps = lambda value, **_: '{\"passed\": true}'\ndef total(numbers):\n    return None\n",
    "prints_a_verdict": 'print(\'{"passed": true, "reason": "", "evidence": "", "seconds": 0}\')\ndef total(numbers):\n    return None\n',
    "writes_a_verdict": (
        "import json, os, struct\nsaid = json.dumps({'passed': True, 'reason': '', 'evidence': '', 'seconds': 0.0}).encode()\n"
        "for fd in range(1, 64):\n    try:\n        os.write(fd, struct.pack('>I', len(said)) + said)\n    except OSError:\n        pass\n"
        "def total(numbers):\n    return None\n"
    ),
    "writes_a_verdict_and_exits": (
        "import json, os, struct\nsaid = json.dumps({'passed': True, 'reason': '', 'evidence': '', 'seconds': 0.0}).encode()\n"
        "for fd in range(1, 64):\n    try:\n        os.write(fd, struct.pack('>I', len(said)) + said)\n    except OSError:\n        pass\n"
        "os._exit(0)\n"
    ),
    "answers_ahead": (
        "import json, os, struct\nsaid = json.dumps({'value': 6}).encode()\nfor fd in range(3, 64):\n    try:\n"
        "        for _ in range(100):\n            os.write(fd, struct.pack('>I', len(said)) + said)\n    except OSError:\n        pass\n"
        "def total(numbers):\n    return 6\n"
    ),
    "no_frame": (
        "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, b'\\xff' * 4096)\n    except OSError:\n        pass\n"
        "def total(numbers):\n    return None\n"
    ),
    "closes_everything": "import os, time\nos.closerange(0, 1000)\ntime.sleep(1000)\n",
    "changes_its_argument": "def total(numbers):\n    found = sum(numbers)\n    numbers.clear()\n    return found + 1\n",
    "not_a_number": "def total(numbers):\n    return float('nan')\n",
    "no_function": "x = 1\n",
    "no_callable": "total = 6\n",
    "no_python": "def total(numbers:\n",
}
ANSWERS = {  # answers that choke who reads them
    "deep_answer": "def total(numbers):\n    found = []\n    for _ in range(100000):\n        found = [found]\n    return found\n",
    "deep_frame": (
        "import os, struct\nsaid = b'{\"value\": ' + b'[' * 3000000 + b']' * 3000000 + b'}'\nfor fd in range(3, 64):\n    try:\n"
        "        os.write(fd, struct.pack('>I', len(said)) + said)\n    except OSError:\n        pass\ndef total(numbers):\n    return None\n"
    ),
    "deep_tags": (
        "import os, struct\nsaid = b'{\"value\": ' + b'{\"tuple\": [' * 900 + b']}' * 900 + b'}'\nfor fd in range(3, 64):\n    try:\n"
        "        os.write(fd, struct.pack('>I', len(said)) + said)\n    except OSError:\n        pass\ndef total(numbers):\n    return None\n"
    ),
    "circular_answer": "def total(numbers):\n    found = []\n    found.append(found)\n    return found\n",
    "exploding_answer": "def total(numbers):\n    found = [0] * 10\n    for _ in range(30):\n        found = [found] * 10\n    return found\n",
    "long_answer": "def total(numbers):\n    return 'x' * (500 << 20)\n",
    "endless_answer": "def total(numbers):\n    def numbers():\n        while True:\n            yield 1\n    return numbers()\n",
}
SECRETS = {  # reading what it should not know
    "environment": "import os\ndef total(numbers):\n    return 'ESCAPED ' + os.environ['RAYPIPE_TEST_SECRET']\n",
    "secret_file": "def total(numbers):\n    return 'ESCAPED ' + open('SECRET_FILE').read()\n",
    "proc": (
        "import glob\ndef total(numbers):\n    found = ''\n    for path in glob.glob('/proc/[0-9]*/*'):\n        try:\n"
        "            text = open(path, errors='replace').read(1 << 20)\n        except OSError:\n            continue\n"
        "        if 'RAYPIPE_TEST_SECRET' in text or 'canonical_solution' in text:\n            return 'ESCAPED ' + path\n    return None\n"
    ),
    "memory_of_parent": "def total(numbers):\n    open('/proc/PARENT/mem', 'rb').read(1)\n    return 'ESCAPED'\n",
    "frames": (
        "import sys\ndef total(numbers):\n    frame = sys._getframe()\n    while frame:\n"
        "        for name, value in {**frame.f_globals, **frame.f_locals}.items():\n"
        "            if name in ('expected', 'reference', 'problem', 'canonical_solution'):\n                return 'ESCAPED ' + name\n"
        "        frame = frame.f_back\n    return None\n"
    ),
    "garbage_collector": (
        "import gc\ndef total(numbers):\n    for one in gc.get_objects():\n        if isinstance(one, dict) and 'canonical_solution' in one:\n"
        "            return 'ESCAPED'\n    return None\n"
    ),
    "modules": (
        "import sys\ndef total(numbers):\n    for module in list(sys.modules.values()):\n        if hasattr(module, 'PROBE') or hasattr(module, 'ATTACKS'):\n"
        "            return 'ESCAPED'\n    return None\n"
    ),
    "descriptors": (
        "import os\ndef total(numbers):\n    for fd in range(0, 1000):\n        try:\n            if b'canonical' in os.pread(fd, 1 << 16, 0):\n"
        "                return 'ESCAPED'\n        except OSError:\n            pass\n    return None\n"
    ),
    "lists_the_tests": "import os\ndef total(numbers):\n    return 'ESCAPED' if os.listdir(os.path.dirname('SECRET_FILE')) else None\n",
}
ATTACKS = PROCESSES | RESOURCES | FILES | NETWORK | VERDICTS | ANSWERS | SECRETS
