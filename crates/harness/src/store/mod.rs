//! Where a run lies: its folder, its manifest, its rows, and the parts that several processes make.
//!
//! ```
//! use mope_harness::store::{folder::RunFolder, manifest::Session, shard::Shard};
//!
//! // A part of a run lies in the run's folder and is written beside the others.
//! let here = tempfile::tempdir()?;
//! let root = here.path().join("run");
//! let shards: [Shard; 2] = ["1/2".parse()?, "2/2".parse()?];
//! for shard in shards {
//!     RunFolder::shard(&root, shard)?.put_session(shard, &Session::start())?;
//! }
//! assert_eq!(RunFolder::open(&root)?.sessions()?.len(), 2);
//! # anyhow::Ok(())
//! ```

pub mod folder;
pub mod manifest;
pub mod preregistration;
pub mod rows;
pub mod shard;
