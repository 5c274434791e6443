"""``python -m tl_multitrace``."""

from tl_multitrace.cli.app import main

if __name__ == "__main__":
    main()
