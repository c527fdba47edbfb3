//! The shell of the Tollgate gateway.
