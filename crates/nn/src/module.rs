//! Finding every parameter of a network by its dotted name.

use loam_tensor::Parameter;

use crate::linear::Linear;

/// Something with parameters.
pub trait Module {
    /// Calls `visit` with the dotted name and the parameter, for each parameter below `path`, in a fixed order.
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter));

    /// Calls `visit` with the dotted name and the layer, for each linear layer below `path`, in a fixed order.
    fn visit_linears(&self, _path: &str, _visit: &mut dyn FnMut(String, &Linear)) {}

    /// All parameters, in the order of [`Module::visit`].
    fn parameters(&self) -> Vec<Parameter> {
        let mut parameters = Vec::new();
        self.visit("", &mut |_, parameter| parameters.push(parameter.clone()));
        parameters
    }
}

/// `path.name`, or just `name` at the root.
pub fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_string() } else { format!("{path}.{name}") }
}

impl<M: Module> Module for Option<M> {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        if let Some(module) = self {
            module.visit(path, visit);
        }
    }

    fn visit_linears(&self, path: &str, visit: &mut dyn FnMut(String, &Linear)) {
        if let Some(module) = self {
            module.visit_linears(path, visit);
        }
    }
}

impl<M: Module> Module for [M] {
    fn visit(&self, path: &str, visit: &mut dyn FnMut(String, &Parameter)) {
        for (index, module) in self.iter().enumerate() {
            module.visit(&join(path, &index.to_string()), visit);
        }
    }

    fn visit_linears(&self, path: &str, visit: &mut dyn FnMut(String, &Linear)) {
        for (index, module) in self.iter().enumerate() {
            module.visit_linears(&join(path, &index.to_string()), visit);
        }
    }
}
