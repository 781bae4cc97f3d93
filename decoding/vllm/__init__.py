"""SID search by vLLM: a logits processor for its workers, and an engine that drives beams over it.

vLLM lives in an environment of its own (`make vllm-env`); nothing outside this folder imports it.
"""
