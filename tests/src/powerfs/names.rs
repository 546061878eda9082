//! The names of a file system, and the operations that change them.
//!
//! There are two sets of names: those that processes see, and those that would be there if the power failed now. Both are
//! changed by the same operations through [`Names::apply`], the second later and in the same order: that is the journal.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};

/// A file, directory or link, whatever its name. Never used twice.
pub type Ino = u64;

/// The directory that everything is under.
pub const ROOT: Ino = 1;

/// What a node is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Its names.
    Dir(BTreeMap<OsString, Ino>),
    /// Its bytes are elsewhere.
    File,
    /// Where it points.
    Symlink(OsString),
}

/// One file, directory or link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// What it is.
    pub kind: Kind,
    /// Permissions.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Its names.
    pub links: u32,
}

/// What is done to names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// A new node gets its first name.
    Create { parent: Ino, name: OsString, ino: Ino, node: Node },
    /// A node gets one more name.
    Link { parent: Ino, name: OsString, ino: Ino },
    /// A name goes.
    Remove { parent: Ino, name: OsString },
    /// A name becomes another one, which is replaced if it is there.
    Rename { parent: Ino, name: OsString, to: Ino, to_name: OsString },
    /// Who may do what.
    Attributes { ino: Ino, mode: u16, uid: u32, gid: u32 },
    /// A file is cut or extended. Not a matter of names, but of the same order.
    Truncate { ino: Ino, size: u64 },
}

/// See the module.
#[derive(Debug, Clone)]
pub struct Names {
    nodes: BTreeMap<Ino, Node>,
}

impl Default for Names {
    fn default() -> Names {
        let root = Node { kind: Kind::Dir(BTreeMap::new()), mode: 0o755, uid: 0, gid: 0, links: 2 };
        Names { nodes: BTreeMap::from([(ROOT, root)]) }
    }
}

impl Names {
    /// A node.
    #[must_use]
    pub fn get(&self, ino: Ino) -> Option<&Node> {
        self.nodes.get(&ino)
    }

    /// What a directory has under this name.
    #[must_use]
    pub fn look_up(&self, parent: Ino, name: &OsStr) -> Option<Ino> {
        self.entries(parent)?.get(name).copied()
    }

    /// The names in a directory; `None` when it is none.
    #[must_use]
    pub fn entries(&self, dir: Ino) -> Option<&BTreeMap<OsString, Ino>> {
        match &self.nodes.get(&dir)?.kind {
            Kind::Dir(entries) => Some(entries),
            Kind::File | Kind::Symlink(_) => None,
        }
    }

    /// All nodes.
    #[must_use]
    pub fn inos(&self) -> BTreeSet<Ino> {
        self.nodes.keys().copied().collect()
    }

    /// Forgets a node that has no name left.
    pub fn forget(&mut self, ino: Ino) {
        self.nodes.remove(&ino);
    }

    fn entries_mut(&mut self, dir: Ino) -> Option<&mut BTreeMap<OsString, Ino>> {
        match &mut self.nodes.get_mut(&dir)?.kind {
            Kind::Dir(entries) => Some(entries),
            Kind::File | Kind::Symlink(_) => None,
        }
    }

    /// Takes a name away; the node that has none left then, if so.
    fn drop_name(&mut self, parent: Ino, name: &OsStr) -> Option<Ino> {
        let ino = self.entries_mut(parent)?.remove(name)?;
        let node = self.nodes.get_mut(&ino)?;
        node.links = match node.kind {
            Kind::Dir(_) => 0,
            Kind::File | Kind::Symlink(_) => node.links.saturating_sub(1),
        };
        (node.links == 0).then_some(ino)
    }

    /// Does it. Whoever calls has checked that it can be done. The node that has lost its last name, if any: it stays until
    /// [`Names::forget`].
    pub fn apply(&mut self, op: &Op) -> Option<Ino> {
        match op {
            Op::Create { parent, name, ino, node } => {
                self.nodes.insert(*ino, node.clone());
                self.entries_mut(*parent)?.insert(name.clone(), *ino);
                None
            }
            Op::Link { parent, name, ino } => {
                self.nodes.get_mut(ino)?.links += 1;
                self.entries_mut(*parent)?.insert(name.clone(), *ino);
                None
            }
            Op::Remove { parent, name } => self.drop_name(*parent, name),
            Op::Rename { parent, name, to, to_name } => {
                let ino = self.look_up(*parent, name)?;
                if self.look_up(*to, to_name) == Some(ino) {
                    return None; // two names of one node: nothing is done
                }
                let replaced = self.drop_name(*to, to_name);
                self.entries_mut(*parent)?.remove(name);
                self.entries_mut(*to)?.insert(to_name.clone(), ino);
                replaced
            }
            Op::Attributes { ino, mode, uid, gid } => {
                let node = self.nodes.get_mut(ino)?;
                (node.mode, node.uid, node.gid) = (*mode, *uid, *gid);
                None
            }
            Op::Truncate { .. } => None,
        }
    }

    /// The nodes that an operation is about to change: a sync of any of them waits for it.
    #[must_use]
    pub fn touched(&self, op: &Op) -> Vec<Ino> {
        let named = |parent: Ino, name: &OsStr| self.look_up(parent, name);
        match op {
            Op::Create { parent, ino, .. } | Op::Link { parent, ino, .. } => vec![*parent, *ino],
            Op::Remove { parent, name } => [Some(*parent), named(*parent, name)].into_iter().flatten().collect(),
            Op::Rename { parent, name, to, to_name } => {
                let moved = [Some(*parent), Some(*to), named(*parent, name), named(*to, to_name)];
                moved.into_iter().flatten().collect()
            }
            Op::Attributes { ino, .. } | Op::Truncate { ino, .. } => vec![*ino],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(links: u32) -> Node {
        Node { kind: Kind::File, mode: 0o644, uid: 0, gid: 0, links }
    }

    #[test]
    fn a_node_is_given_up_with_its_last_name() {
        let mut names = Names::default();
        let create = |name: &str, ino| Op::Create { parent: ROOT, name: name.into(), ino, node: file(1) };
        assert_eq!(names.apply(&create("a", 2)), None);
        assert_eq!(names.apply(&Op::Link { parent: ROOT, name: "b".into(), ino: 2 }), None);
        assert_eq!(names.apply(&Op::Remove { parent: ROOT, name: "a".into() }), None);
        assert_eq!(names.look_up(ROOT, OsStr::new("b")), Some(2));
        names.apply(&create("c", 3));
        let rename = Op::Rename { parent: ROOT, name: "c".into(), to: ROOT, to_name: "b".into() };
        assert_eq!(names.touched(&rename), vec![ROOT, ROOT, 3, 2]);
        assert_eq!(names.apply(&rename), Some(2), "what was there is replaced");
        assert_eq!(names.look_up(ROOT, OsStr::new("b")), Some(3));
        assert_eq!(names.look_up(ROOT, OsStr::new("c")), None);
    }
}
