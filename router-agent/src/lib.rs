//! Warmpath: a load balancer for fleets of vLLM servers.
#[forbid(unsafe_code)]
pub mod index;
#[expect(unsafe_code, reason = "the one folder that makes system calls")]
pub mod kernel;
#[forbid(unsafe_code)]
pub mod prompt;
#[forbid(unsafe_code)]
pub mod routing;
