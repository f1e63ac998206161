"""`python -m lowmem_seq`: the same as the console script `lowmem-seq`."""

from lowmem_seq.cli.main import main

if __name__ == "__main__":
    main()
