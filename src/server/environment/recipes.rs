//! The runtimes' recipes, read again only when their file has changed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use std::{fs, io};

use crate::runtime::{Recipe, RecipeError, RuntimeName};

pub struct Recipes {
    runtimes_dir: PathBuf,
    /// By the time of the file's last change. Taken for one look and one insert.
    read: Mutex<HashMap<RuntimeName, (SystemTime, Arc<Recipe>)>>,
}

impl Recipes {
    pub fn new(runtimes_dir: PathBuf) -> Self {
        Self { runtimes_dir, read: Mutex::default() }
    }

    /// `None`: not installed.
    pub fn recipe(&self, name: &RuntimeName) -> Result<Option<Arc<Recipe>>, RecipeError> {
        let path = self.runtimes_dir.join(format!("{name}.toml"));
        let changed = match fs::metadata(&path).and_then(|file| file.modified()) {
            Ok(changed) => changed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(RecipeError::Read { path, source }),
        };
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, recipe)) = read.get(name).filter(|(at, _)| *at == changed) {
            return Ok(Some(recipe.clone()));
        }
        let Some(recipe) = Recipe::read(&self.runtimes_dir, name)?.map(Arc::new) else { return Ok(None) };
        read.insert(name.clone(), (changed, recipe.clone()));
        Ok(Some(recipe))
    }
}
