"""`python -m lite_probe`: the `lite-probe` command, as `torchrun -m lite_probe` starts it on every rank."""

from lite_probe.commands.main import main

if __name__ == "__main__":
    main()
