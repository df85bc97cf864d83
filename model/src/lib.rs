//! The maths of Empathd: one frozen backbone, a mixture of low-rank experts over it, training, generation, and the
//! process that serves them. This crate refuses to know databases, keys, clients and HTTP.
//!
//! Reading order: [`config`] (shapes), [`ops`] (differentiable operations), [`backbone`] (frozen weights and the way
//! through them), [`adapter`] (what is trained), [`train`] (how); then [`gguf`], [`tokenizer`] and [`template`] (what a
//! model file holds), [`infer`] (answers), [`engine`] (the process). [`tiny`] is a model for tests.

pub mod adapter;
pub mod backbone;
pub mod config;
pub mod counter;
pub mod device;
pub mod embed;
pub mod engine;
pub mod gguf;
pub mod infer;
pub mod kernels;
pub mod ops;
pub mod packed;
pub mod schedule;
pub mod template;
pub mod tiny;
pub mod tokenizer;
pub mod train;
