//! A simulated vLLM worker.
#![forbid(unsafe_code)]
