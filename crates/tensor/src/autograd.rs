//! The tape: which operation made a tensor, and how a gradient flows back through it.
//!
//! A node owns the closure that computes its inputs' gradients; running it consumes what it saved, so activations are
//! freed on the way back. Gradients of inner nodes live only during [`backward`]; those of parameters stay with them.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::backend::{Device, Start};
use crate::dims::Dims;
use crate::parameter::Parameter;
use crate::raw::{DType, Raw};

type BackwardFn = Box<dyn FnOnce(&Raw, &mut Grads<'_>) + Send>;

/// Where a tensor that wants a gradient came from.
#[derive(Clone)]
pub(crate) enum Origin {
    Parameter(Parameter),
    Node(Arc<Node>),
}

/// One recorded operation.
pub(crate) struct Node {
    id: u64,
    shape: Dims,
    parents: Vec<Option<Origin>>,
    backward: Mutex<Option<BackwardFn>>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(0);

/// What becomes of the operations of a thread.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// They are recorded.
    Recording,
    /// Backward will run them once more, and record them then.
    Postponed,
    /// No gradient will ever be asked of them.
    Off,
}

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Recording) };
}

fn within<R>(mode: Mode, work: impl FnOnce() -> R) -> R {
    struct Restore(Mode);
    impl Drop for Restore {
        fn drop(&mut self) {
            MODE.set(self.0);
        }
    }
    let _restore = Restore(MODE.replace(mode));
    work()
}

/// Runs `work` without recording, as inference and evaluation do.
pub fn no_grad<R>(work: impl FnOnce() -> R) -> R {
    within(Mode::Off, work)
}

/// Runs `work` without recording, since backward will run it again.
pub(crate) fn postponed<R>(work: impl FnOnce() -> R) -> R {
    within(Mode::Postponed, work)
}

/// Whether operations are being recorded on this thread.
pub fn is_recording() -> bool {
    MODE.get() == Mode::Recording
}

/// Whether gradients will be asked of what is computed on this thread, now or once it is run again.
pub(crate) fn is_training() -> bool {
    MODE.get() != Mode::Off
}

impl Node {
    /// Records an operation whose result has `shape`, unless no parent wants a gradient.
    pub(crate) fn record(
        shape: Dims,
        parents: Vec<Option<Origin>>,
        backward: impl FnOnce(&Raw, &mut Grads<'_>) + Send + 'static,
    ) -> Option<Origin> {
        if !is_recording() || parents.iter().all(Option::is_none) {
            return None;
        }
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        let backward = Mutex::new(Some(Box::new(backward) as BackwardFn));
        Some(Origin::Node(Arc::new(Self { id, shape, parents, backward })))
    }
}

/// What a backward closure writes to: one slot per input of the operation, in order.
pub(crate) struct Grads<'a> {
    engine: &'a mut Engine,
    parents: &'a [Option<Origin>],
}

impl Grads<'_> {
    /// Whether input `index` wants a gradient.
    pub(crate) fn wants(&self, index: usize) -> bool {
        self.parents[index].is_some()
    }

    /// Adds `grad` to input `index`'s gradient (dropped if it wants none).
    pub(crate) fn add(&mut self, index: usize, grad: Raw) {
        match &self.parents[index] {
            None => {}
            Some(Origin::Parameter(parameter)) => parameter.add_grad(grad),
            Some(Origin::Node(node)) => self.engine.add(node, grad),
        }
    }

    /// Lets `work` accumulate into input `index`'s gradient in place: `work(slot, start)` must set
    /// `slot = start + grad`, where the start is zero for a fresh slot with unspecified contents.
    pub(crate) fn accumulate(&mut self, index: usize, work: impl FnOnce(&mut Raw, Start<'static>)) {
        match &self.parents[index] {
            None => {}
            Some(Origin::Parameter(parameter)) => parameter.accumulate(work),
            Some(Origin::Node(node)) => self.engine.accumulate(node, work),
        }
    }

    /// As [`Grads::accumulate`] for operations that can only add: a fresh slot arrives zeroed.
    pub(crate) fn add_into(&mut self, index: usize, work: impl FnOnce(&mut Raw)) {
        self.accumulate(index, |slot, start| {
            if matches!(start, Start::Zero) {
                slot.f32_mut().fill(0.0);
            }
            work(slot);
        });
    }
}

#[derive(Default)]
struct Engine {
    /// Nodes waiting for their turn, newest first when popped from the end.
    ready: BTreeMap<u64, Arc<Node>>,
    grads: HashMap<u64, Raw>,
}

impl Engine {
    fn add(&mut self, node: &Arc<Node>, grad: Raw) {
        assert_eq!(grad.count(), node.shape.count(), "a gradient has the shape of its tensor {:?}", node.shape);
        self.ready.entry(node.id).or_insert_with(|| node.clone());
        match self.grads.remove(&node.id) {
            None => {
                self.grads.insert(node.id, grad);
            }
            Some(mut sum) => {
                // Two consumers may have been handed the same buffer (`a + b` passes one gradient to both).
                if !sum.is_unique() || !sum.is_dense() {
                    sum = Device::Cpu.backend().copy(&sum);
                }
                let grad = if grad.is_dense() { grad } else { Device::Cpu.backend().copy(&grad) };
                Device::Cpu.backend().axpy(&mut sum, 1.0, &grad);
                self.grads.insert(node.id, sum);
            }
        }
    }

    fn accumulate(&mut self, node: &Arc<Node>, work: impl FnOnce(&mut Raw, Start<'static>)) {
        self.ready.entry(node.id).or_insert_with(|| node.clone());
        let (mut slot, start) = match self.grads.remove(&node.id) {
            None => (Raw::empty(DType::F32, node.shape), Start::Zero),
            Some(sum) if sum.is_dense() && sum.is_unique() => (sum, Start::Sum),
            Some(sum) => (Device::Cpu.backend().copy(&sum), Start::Sum),
        };
        work(&mut slot, start);
        self.grads.insert(node.id, slot);
    }

    /// Runs every node that has a gradient, newest first; hands on the parameters that `uses` lists at a node once it is
    /// done.
    fn run(&mut self, mut uses: HashMap<u64, Vec<Parameter>>, on_complete: &mut OnComplete<'_>) {
        while let Some((id, node)) = self.ready.pop_last() {
            let grad = self.grads.remove(&id).expect("a node is ready only once it has a gradient");
            let backward = node.backward.lock().unwrap_or_else(PoisonError::into_inner).take();
            let backward = backward.expect("backward runs once per graph: its saved activations are consumed");
            let grad = if grad.is_dense() { grad } else { Device::Cpu.backend().copy(&grad) };
            backward(&grad.reshaped(node.shape), &mut Grads { engine: self, parents: &node.parents });
            uses.remove(&id).iter().flatten().for_each(&mut *on_complete);
        }
    }
}

/// Receives a parameter once its gradient is complete.
pub(crate) type OnComplete<'a> = dyn FnMut(&Parameter) + 'a;

/// The parameters of a graph, each at its earliest use: nodes run in descending order, so there its gradient is complete.
fn earliest_uses(root: &Arc<Node>) -> HashMap<u64, Vec<Parameter>> {
    let mut earliest: BTreeMap<usize, (u64, Parameter)> = BTreeMap::new();
    let (mut seen, mut open) = (HashSet::from([root.id]), vec![root.clone()]);
    while let Some(node) = open.pop() {
        for parent in node.parents.iter().flatten() {
            match parent {
                Origin::Parameter(parameter) => {
                    let use_ = earliest.entry(parameter.address()).or_insert((node.id, parameter.clone()));
                    use_.0 = use_.0.min(node.id);
                }
                Origin::Node(parent) => {
                    if seen.insert(parent.id) {
                        open.push(parent.clone());
                    }
                }
            }
        }
    }
    let mut uses: HashMap<u64, Vec<Parameter>> = HashMap::new();
    earliest.into_values().for_each(|(id, parameter)| uses.entry(id).or_default().push(parameter));
    uses
}

/// Back-propagates `grad` from a tensor made by `origin`, adding to the gradients of all parameters it depends on.
pub(crate) fn backward(origin: &Origin, grad: Raw, on_complete: Option<&mut OnComplete<'_>>) {
    match origin {
        Origin::Parameter(parameter) => {
            parameter.add_grad(grad);
            on_complete.into_iter().for_each(|on_complete| on_complete(parameter));
        }
        Origin::Node(node) => {
            let mut engine = Engine::default();
            engine.add(node, grad);
            match on_complete {
                Some(on_complete) => engine.run(earliest_uses(node), on_complete),
                None => engine.run(HashMap::new(), &mut |_| {}),
            }
        }
    }
}
