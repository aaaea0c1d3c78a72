//! Writes the recipe's reference page: `cargo run -p loam-train --example reference > docs/reference/recipe.md`.

#![allow(clippy::print_stdout, reason = "the page is this program's output")]

fn main() {
    print!("{}", loam_train::recipe::reference_page());
}
