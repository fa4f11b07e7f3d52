//! The harness of the behaviour tests: a real `warmpath` process in front of simulated workers.
#![forbid(unsafe_code)]
