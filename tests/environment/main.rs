//! The gateway where containers, service managers and other users set bounds: the real program under their rules, with a real client.

mod certificates;
mod containers;
mod devices;
mod doctor;
mod logs;
mod modes;
mod neighbours;
mod privileges;
mod resources;
mod service;
mod site;
mod system_calls;
