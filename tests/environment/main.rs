//! The gateway where containers, service managers and other users set bounds: the real program under their rules, with a real client.

mod certificates;
mod containers;
mod devices;
mod doctor;
mod image;
mod logs;
mod manager;
mod migration;
mod modes;
mod neighbours;
mod packages;
mod privileges;
mod quick_start;
mod resources;
mod service;
mod site;
mod system_calls;
