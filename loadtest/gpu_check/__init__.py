"""Everything CUDA on one card: correctness first, then timing, against peers in the same run.

    python -m loadtest.gpu_check --out DIR

writes DIR/CARD.json and exits with 1 when a check failed. Needs torch and Triton for CUDA, no
network; within ten minutes on one H100.
"""
