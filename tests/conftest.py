"""Settings and inputs that every test may use."""

import os

# Two threads everywhere: results are then the same whatever the machine, and tests don't fight over cores.
os.environ.setdefault("OMP_NUM_THREADS", "2")
