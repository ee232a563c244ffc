//! One executor a mechanism, each with its undo.
