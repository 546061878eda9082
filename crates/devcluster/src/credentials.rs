//! The S3 key pair of a development cluster: made at first start, kept in a file that only its owner can read.

use std::fs;

use serde::{Deserialize, Serialize};

use crate::directory::ClusterDir;
use crate::error::DevError;

/// An S3 key pair. `Debug` does not show the secret.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credentials {
    /// 20 letters and digits.
    pub access_key: String,
    /// 40 characters.
    pub secret_key: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("access_key", &self.access_key).finish_non_exhaustive()
    }
}

impl Credentials {
    /// The kept pair, or a new one that is kept from now on.
    ///
    /// # Errors
    /// [`DevError`] when the file cannot be read, written or understood.
    pub fn open_or_create(dir: &ClusterDir) -> Result<Credentials, DevError> {
        match Credentials::open(dir) {
            Err(DevError::File { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            other => return other,
        }
        let path = dir.credentials_file();
        let drawn = Credentials {
            access_key: format!(
                "HF{}",
                random_text(18, b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567").map_err(DevError::file("draw", &path))?
            ),
            secret_key: random_text(40, b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")
                .map_err(DevError::file("draw", &path))?,
        };
        let text = toml::to_string(&drawn).expect("two strings always encode");
        dir.write_whole(&path, &text, 0o600)?;
        Ok(drawn)
    }

    /// The kept pair.
    ///
    /// # Errors
    /// [`DevError`] when there is none, or it cannot be read or understood.
    pub fn open(dir: &ClusterDir) -> Result<Credentials, DevError> {
        let path = dir.credentials_file();
        let text = fs::read_to_string(&path).map_err(DevError::file("read", &path))?;
        toml::from_str(&text).map_err(|error| DevError::Malformed { path, detail: error.message().to_owned() })
    }
}

/// Characters of `alphabet` (at most 256 of them), drawn evenly by the system's random source.
fn random_text(length: usize, alphabet: &[u8]) -> std::io::Result<String> {
    let limit = 256 - 256 % alphabet.len();
    let mut text = String::with_capacity(length);
    while text.len() < length {
        let mut bytes = [0u8; 64];
        getrandom::fill(&mut bytes).map_err(std::io::Error::other)?;
        let even = bytes.iter().map(|byte| usize::from(*byte)).filter(|byte| *byte < limit);
        text.extend(even.map(|byte| char::from(alphabet[byte % alphabet.len()])).take(length - text.len()));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn credentials_are_drawn_once_and_only_the_owner_can_read_them() {
        let temp = tempfile::tempdir().expect("a temporary directory");
        let dir = ClusterDir::create(temp.path()).expect("made");
        let first = Credentials::open_or_create(&dir).expect("drawn");
        assert_eq!((first.access_key.len(), first.secret_key.len()), (20, 40));
        assert_eq!(Credentials::open_or_create(&dir).expect("kept"), first);
        let mode = fs::metadata(dir.credentials_file()).expect("there").permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(!format!("{first:?}").contains(&first.secret_key));
        let other = ClusterDir::create(&temp.path().join("other")).expect("made");
        assert_ne!(Credentials::open_or_create(&other).expect("drawn").secret_key, first.secret_key);
    }
}
