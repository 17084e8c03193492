"""Pure functions on numpy, torch and arrow: no Ray, no I/O."""
