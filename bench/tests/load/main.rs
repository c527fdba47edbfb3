//! Whole loads against real gateways, healthy and faulty, in namespaces of their own.

mod balance;
mod faults;
mod harness;
mod named;
mod order;
