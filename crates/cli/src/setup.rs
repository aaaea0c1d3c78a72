//! What happens before a command runs: environment, instruction set, threads.

use crate::failure::Failure;
use std::env;
use std::path::PathBuf;

/// What Loam takes from the environment.
#[derive(Debug, Clone)]
pub struct Environment {
    /// `LOAM_CPU`: the instruction set to use.
    pub cpu: Option<String>,
    /// `LOAM_THREADS`.
    pub threads: Option<String>,
    /// `LOAM_HOME`, else `~/.loam`: the local store of models.
    pub home: Option<PathBuf>,
    /// `HF_ENDPOINT`: the hub that models are pulled from.
    pub hub_endpoint: Option<String>,
    /// `HF_TOKEN`: who asks there.
    pub hub_token: Option<String>,
}

impl Environment {
    /// Reads the environment; an empty variable counts as absent.
    pub fn read() -> Result<Self, Failure> {
        let text = |name: &str| match env::var(name) {
            Ok(value) => Ok(Some(value).filter(|v| !v.is_empty())),
            Err(env::VarError::NotPresent) => Ok(None),
            Err(env::VarError::NotUnicode(_)) => Err(Failure::new(format!("{name} is not UTF-8 text"))),
        };
        let path = |name: &str| env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
        let home = path("LOAM_HOME").or_else(|| Some(path("HOME").or_else(|| path("USERPROFILE"))?.join(".loam")));
        let (hub_endpoint, hub_token) = (text("HF_ENDPOINT")?, text("HF_TOKEN")?);
        Ok(Self { cpu: text("LOAM_CPU")?, threads: text("LOAM_THREADS")?, home, hub_endpoint, hub_token })
    }
}

/// Forces the instruction set that `LOAM_CPU` names. Must run before any kernel and any thread.
pub fn choose_instruction_set(environment: &Environment) -> Result<(), Failure> {
    let Some(name) = &environment.cpu else { return Ok(()) };
    loam_kernels::isa::force(name).map(|_| ()).map_err(|reason| {
        Failure::with_hint(format!("LOAM_CPU: {reason}"), "unset LOAM_CPU to use the best one that this machine has")
    })
}

/// The number of threads: `--threads`, else `LOAM_THREADS`; `None` is all cores.
pub fn thread_count(option: Option<usize>, environment: &Environment) -> Result<Option<usize>, Failure> {
    let (name, text) = match (option, &environment.threads) {
        (Some(count), _) => ("--threads", count.to_string()),
        (None, Some(text)) => ("LOAM_THREADS", text.clone()),
        (None, None) => return Ok(None),
    };
    match text.parse() {
        Ok(count) if (1..=MOST_THREADS).contains(&count) => Ok(Some(count)),
        _ => Err(Failure::new(format!("{name} must be a number from 1 to {MOST_THREADS}, found `{text}`"))),
    }
}

const MOST_THREADS: usize = 1024;
/// Deep call chains of the backward pass and of JSON need more than a thread's usual 2 MiB.
const STACK_BYTES: usize = 16 << 20;

/// Starts the thread pool that all kernels use.
pub fn start_threads(threads: Option<usize>) -> Result<(), Failure> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.unwrap_or(0))
        .stack_size(STACK_BYTES)
        .build_global()
        .map_err(|e| Failure::new(format!("cannot start the threads: {e}")))
}

/// Runs a command inside the thread pool: entering it once is cheaper than at every operation.
pub fn in_thread_pool<R: Send>(work: impl FnOnce() -> R + Send) -> Result<R, Failure> {
    let mut result = None;
    rayon::scope(|_| result = Some(work()));
    result.ok_or_else(|| Failure::new("the command ended without a result"))
}
