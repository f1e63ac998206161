"""Memory: what a process tree holds, and the plan that keeps it under the cap."""
