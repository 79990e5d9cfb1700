"""`python launch.py` runs an experiment; `python launch.py --help` says which there are."""
from mamba_mi.cli import main

if __name__ == "__main__":
    main()
