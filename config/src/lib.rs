//! Configuration of the gateway and its client: TOML in, checked values out.
