"""The supervisor: starts packer, planner and trainer by command line, and watches the tree. Holds no torch."""
