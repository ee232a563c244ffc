//! Everything of portcullis that touches a machine: [`observe`] reads it, [`change`] alters one
//! mechanism at a time, [`transaction`] makes a plan of changes safe, [`bans`] puts addresses out and
//! lets them in again, [`witness`] notes what arrives from outside.
pub mod bans;
pub mod change;
pub mod exec;
pub mod observe;
pub mod transaction;
pub mod witness;
