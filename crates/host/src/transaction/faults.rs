//! Places where a test may make a transaction fail or die.

use std::io;

/// Asked at every place where a crash would leave something half done: before and after each
/// journal record, before and after each change and each undo. Product code uses [`NoFaults`].
pub trait Faults: Sync {
    /// Called with the name of the place. An error is treated as the operation's own error; an
    /// implementation may also end the process here, which is what a crash test does.
    fn point(&self, place: &str) -> io::Result<()>;
}

/// Nothing goes wrong on purpose.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFaults;

impl Faults for NoFaults {
    fn point(&self, _place: &str) -> io::Result<()> {
        Ok(())
    }
}
