//! Checks of the workspace itself: layers, sizes, goldens.
