//! Model families as data: Spec, the stacks, weight maps, registry, footprint.
