//! Warmpath: a load balancer for fleets of vLLM servers.
//!
//! Clients speak the OpenAI HTTP API to the gateway. For each request it finds the worker that already holds the prompt's
//! prefix in its KV cache and is not overloaded, so that prefill is not done twice. The modules, in the order in which a
//! request meets them:
//!
//! | module | knows |
//! |---|---|
//! | [`gateway`] | HTTP with clients: listeners, the request's path, errors, the relay of responses |
//! | [`tenants`] | API keys: who asks, and how much they may |
//! | [`shaping`] | model aliases and tenants' defaults: what is made of a request before it is routed |
//! | [`cache`] | answers that are given again, and those that several share |
//! | [`prompt`] | the shallow, borrowed parse of a request body, and its block hashes |
//! | [`tokenize`] | the chat template and the tokenizer: the ids that the engine will see |
//! | [`index`] | which worker holds which prefix |
//! | [`routing`] | how to choose: candidates in, one worker and the reason out |
//! | [`fleet`] | the workers: health, circuit breaker, load in flight |
//! | [`shared`] | what several gateways tell each other through Redis |
//! | [`kv_events`] | what workers say of their KV caches |
//! | [`tls`] | certificates and keys from files |
//! | [`records`] | what was decided and why, for whoever asks later |
//! | [`replay`] | recorded requests again, in simulated time or for real |
//! | [`traces`] | one request's way as OpenTelemetry spans |
//! | [`upstream`] | HTTP with workers: connections, pools, sending |
//! | [`discovery`] | sources of workers that come and go by themselves: files, DNS, Kubernetes |
//! | [`lifecycle`] | reloads of the configuration |
//! | [`privileges`] | what this process gives up before it serves |
//! | [`descriptors`] | how many files and sockets it may have |
//! | [`kernel`] | BPF: the one folder that makes system calls |
//! | [`window`] | sums over the last while |
//! | [`admin`], [`telemetry`], [`config`], [`cli`] | what operators see and say |
//!
//! A module knows those below it only: `index` and `routing` know no HTTP, `gateway` knows no BPF map, `kernel` knows no
//! policy.

#[forbid(unsafe_code)]
pub mod admin;
#[forbid(unsafe_code)]
pub mod cache;
#[forbid(unsafe_code)]
pub mod cli;
#[forbid(unsafe_code)]
pub mod config;
#[forbid(unsafe_code)]
pub mod descriptors;
#[forbid(unsafe_code)]
pub mod discovery;
#[forbid(unsafe_code)]
pub mod fleet;
#[forbid(unsafe_code)]
pub mod gateway;
#[forbid(unsafe_code)]
pub mod index;
#[expect(unsafe_code, reason = "the one folder that makes system calls")]
pub mod kernel;
#[forbid(unsafe_code)]
pub mod kv_events;
#[forbid(unsafe_code)]
pub mod lifecycle;
#[forbid(unsafe_code)]
pub mod limits;
#[forbid(unsafe_code)]
pub mod privileges;
#[forbid(unsafe_code)]
pub mod prompt;
#[forbid(unsafe_code)]
pub mod records;
#[forbid(unsafe_code)]
pub mod replay;
#[forbid(unsafe_code)]
pub mod routing;
#[forbid(unsafe_code)]
pub mod shaping;
#[forbid(unsafe_code)]
pub mod shared;
#[forbid(unsafe_code)]
pub mod telemetry;
#[forbid(unsafe_code)]
pub mod tenants;
#[forbid(unsafe_code)]
pub mod tls;
#[forbid(unsafe_code)]
pub mod tokenize;
#[forbid(unsafe_code)]
pub mod traces;
#[forbid(unsafe_code)]
pub mod upstream;
#[forbid(unsafe_code)]
pub mod window;
