"""`python -m cryptfs`."""

from cryptfs.cli.main import run

if __name__ == "__main__":
    run()
