//! Runs programs: argv only, absolute path, cleared environment, bounded time and output.
