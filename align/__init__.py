"""Train one-step text-to-image generators: Diff-Instruct, SIM, Diff-Instruct++ and Diff-Instruct*."""
