//! A plan being applied: journal, snapshot, watchdog, rollback.
