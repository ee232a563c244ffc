//! Values into calm text of at most 80 columns. All outside text is escaped here or before.

pub mod audit;
pub mod plan;
pub mod reach;
pub mod scan;
pub mod style;
pub mod verify;
pub mod why;
