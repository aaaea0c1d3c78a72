//! The names that a checkpoint may mention, and what calling them builds. Nothing else is ever called.

use super::pickle::{Heap, Id, Node};
use super::tensor::{MAX_AXES, Storage, Tensor};
use super::{Problem, damaged};
use crate::Dtype;

/// A name that the interpreter knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict`: a dictionary.
    OrderedDict,
    /// `torch._utils._rebuild_tensor` and its second and third version: a view of a storage.
    RebuildTensor { has_dtype: bool },
    /// `torch._utils._rebuild_parameter`: the tensor it is given.
    RebuildParameter,
    /// `torch._tensor._rebuild_from_type_v2`: what the function that it is given builds.
    RebuildFromType,
    /// `torch.Size`: the tuple it is given.
    Size,
    /// A class of tensors, as an argument of others.
    Class,
    /// A kind of storage; untyped ones leave the element type to the tensor.
    Storage(Option<Dtype>),
    /// An element type.
    Dtype(Dtype),
    /// Something that weights have no use for; calling it builds a value without content.
    Inert,
}

/// Names of element types in Python and of the storages that hold them.
const DTYPES: [(&str, &str, Dtype); 15] = [
    ("float32", "FloatStorage", Dtype::F32),
    ("float16", "HalfStorage", Dtype::F16),
    ("bfloat16", "BFloat16Storage", Dtype::BF16),
    ("float64", "DoubleStorage", Dtype::F64),
    ("int64", "LongStorage", Dtype::I64),
    ("int32", "IntStorage", Dtype::I32),
    ("int16", "ShortStorage", Dtype::I16),
    ("int8", "CharStorage", Dtype::I8),
    ("uint8", "ByteStorage", Dtype::U8),
    ("bool", "BoolStorage", Dtype::Bool),
    // These came after storages lost their types.
    ("uint16", "", Dtype::U16),
    ("uint32", "", Dtype::U32),
    ("uint64", "", Dtype::U64),
    ("float8_e5m2", "", Dtype::F8E5M2),
    ("float8_e4m3fn", "", Dtype::F8E4M3),
];

impl Global {
    /// The meaning of a name; the error says whether it is refused or merely of no use.
    pub(super) fn find(module: &str, name: &str) -> Result<Self, Problem> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Self::RebuildTensor { has_dtype: false },
            ("torch._utils", "_rebuild_tensor_v3") => Self::RebuildTensor { has_dtype: true },
            ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Self::RebuildParameter,
            ("torch._tensor", "_rebuild_from_type_v2") => Self::RebuildFromType,
            ("torch", "Size") => Self::Size,
            ("torch", "Tensor") | ("torch.nn.parameter", "Parameter" | "Buffer") => Self::Class,
            ("torch", "device") | ("_codecs", "encode") => Self::Inert,
            ("builtins" | "__builtin__", "set" | "frozenset" | "bytearray") => Self::Inert,
            ("torch", "UntypedStorage") | ("torch.storage", "UntypedStorage") => Self::Storage(None),
            ("torch", _) => return Self::of_torch(name),
            ("torch._utils", _) if name.starts_with("_rebuild_") => return Err(unsupported(module, name)),
            ("torch.serialization", "_get_layout") => return Err(unsupported(module, name)),
            _ => return Err(Problem::Calls(format!("{module}.{name}"))),
        })
    }

    /// Element types and storages, which lie in the module `torch` itself.
    fn of_torch(name: &str) -> Result<Self, Problem> {
        let known = |row: &&(&str, &str, Dtype)| name == row.0 || (name == row.1 && !name.is_empty());
        match DTYPES.iter().find(known) {
            Some(&(python, _, dtype)) if name == python => Ok(Self::Dtype(dtype)),
            Some(&(_, _, dtype)) => Ok(Self::Storage(Some(dtype))),
            None if name.ends_with("Storage") || name.starts_with("complex") || name.starts_with("float8_") => {
                Err(unsupported("torch", name))
            }
            None => Err(Problem::Calls(format!("torch.{name}"))),
        }
    }

    /// What calling the name with these arguments builds.
    pub(super) fn call(self, heap: &mut Heap<'_>, arguments: &[Id]) -> Result<Id, Problem> {
        match (self, arguments) {
            (Self::OrderedDict, []) => heap.add(Node::Dict(Vec::new())),
            (Self::OrderedDict, &[pairs]) => {
                let pairs = pairs_of(heap, pairs)?;
                heap.spend(pairs.len())?;
                heap.add(Node::Dict(pairs))
            }
            (Self::RebuildTensor { has_dtype }, _) => {
                let tensor = rebuild(heap, arguments, has_dtype)?;
                heap.add(Node::Tensor(Box::new(tensor)))
            }
            (Self::RebuildParameter, &[tensor, ..]) if matches!(heap.get(tensor), Node::Tensor(_)) => Ok(tensor),
            // Only the functions that build a tensor themselves: else one call could hide in another without an end.
            (Self::RebuildFromType, &[function, _, inner, ..]) => match (heap.get(function), heap.get(inner)) {
                (&Node::Global(Global::RebuildTensor { has_dtype }), Node::Sequence(inner)) => {
                    let tensor = rebuild(heap, inner, has_dtype)?;
                    heap.add(Node::Tensor(Box::new(tensor)))
                }
                (function, _) => damaged(format!("a tensor is rebuilt by {}", function.kind())),
            },
            (Self::Size, &[sizes]) if matches!(heap.get(sizes), Node::Sequence(_)) => Ok(sizes),
            (Self::Inert, _) => heap.add(Node::Other("a value")),
            _ => damaged(format!("{self:?} is called with {} arguments that do not fit it", arguments.len())),
        }
    }
}

fn unsupported(module: &str, name: &str) -> Problem {
    Problem::Unsupported(format!("it holds a kind of tensor that Loam does not read ({module}.{name})"))
}

/// A list of pairs, as older versions of Python give to an `OrderedDict`.
fn pairs_of(heap: &Heap<'_>, pairs: Id) -> Result<Vec<(Id, Id)>, Problem> {
    let Node::Sequence(pairs) = heap.get(pairs) else { return damaged("an OrderedDict is built of no list") };
    let pair = |id: &Id| match heap.get(*id) {
        Node::Sequence(pair) => <[Id; 2]>::try_from(&pair[..]).ok().map(|[key, value]| (key, value)),
        _ => None,
    };
    match pairs.iter().map(pair).collect() {
        Some(pairs) => Ok(pairs),
        None => damaged("an OrderedDict is built of a list whose items are not pairs"),
    }
}

/// `(storage, offset, size, stride, …)`, and the element type in the seventh place of the third version.
fn rebuild<'a>(heap: &Heap<'a>, arguments: &[Id], has_dtype: bool) -> Result<Tensor<'a>, Problem> {
    let &[storage, offset, size, stride, ..] = arguments else { return damaged("a tensor is built of too few parts") };
    let Node::Storage(storage) = heap.get(storage) else { return damaged("a tensor is built without a storage") };
    let named = match arguments.get(6).map(|id| heap.get(*id)) {
        Some(Node::Global(Global::Dtype(dtype))) if has_dtype => Some(*dtype),
        _ if has_dtype => return damaged("a tensor of an untyped storage names no element type"),
        _ => None,
    };
    let Some(dtype) = named.or(storage.dtype) else {
        return damaged("a tensor of an untyped storage has no element type");
    };
    let whole = |id: Id| match heap.get(id) {
        Node::Int(n) => usize::try_from(*n).ok(),
        _ => None,
    };
    let all = |id: Id| match heap.get(id) {
        Node::Sequence(ids) if ids.len() <= MAX_AXES => ids.iter().map(|id| whole(*id)).collect::<Option<Vec<usize>>>(),
        _ => None,
    };
    match (whole(offset), all(size), all(stride)) {
        (Some(offset), Some(shape), Some(stride)) => {
            Ok(Tensor { storage: (**storage).clone(), dtype, offset, shape, stride })
        }
        _ => damaged(format!(
            "the offset, shape or strides of a tensor are not up to {MAX_AXES} whole numbers from zero"
        )),
    }
}

/// What a persistent id, `("storage", kind, key, place, length)`, refers to.
pub(super) fn storage<'a>(heap: &Heap<'a>, id: Id) -> Result<Storage<'a>, Problem> {
    let Node::Sequence(parts) = heap.get(id) else { return damaged("a persistent id is no tuple") };
    let nodes: Vec<&Node<'a>> = parts.iter().take(5).map(|id| heap.get(*id)).collect();
    match nodes[..] {
        [Node::Text("storage"), Node::Global(Global::Storage(dtype)), Node::Text(key), _, Node::Int(length)] => {
            match usize::try_from(*length) {
                Ok(length) => Ok(Storage { dtype: *dtype, key, length }),
                Err(_) => damaged(format!("storage {key} has the length {length}")),
            }
        }
        _ => damaged("a persistent id is not that of a storage"),
    }
}
