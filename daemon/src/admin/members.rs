//! Which local users are administrators, by user number and by group. Groups are read from the machine's own files, the
//! supplementary ones of a user among them; directory services are not asked.

use crate::actor::{Actor, AdminRole};
use std::path::PathBuf;

/// Largest `/etc/passwd` or `/etc/group` that is read.
const FILE_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// Who may administer.
#[derive(Debug, Clone)]
pub(super) struct Members {
    users: Vec<u32>,
    groups: Vec<String>,
    passwd: PathBuf,
    group: PathBuf,
}

impl Members {
    /// Root, the daemon's own user, and those configured: users by number, groups by name or number.
    #[must_use]
    pub(super) fn new(users: &[u32], groups: &[String]) -> Self {
        let own = rustix::process::geteuid().as_raw();
        let users = users.iter().copied().chain([0, own]).collect();
        Self { users, groups: groups.to_vec(), passwd: "/etc/passwd".into(), group: "/etc/group".into() }
    }

    /// The actor behind these numbers, which the kernel gave.
    #[must_use]
    pub(super) fn actor(&self, uid: u32, gid: u32) -> Actor {
        let administrator = self.users.contains(&uid) || self.is_in_group(uid, gid);
        let role = if administrator { AdminRole::Administrator } else { AdminRole::Observer };
        Actor::LocalUser { uid, role }
    }

    fn is_in_group(&self, uid: u32, gid: u32) -> bool {
        if self.groups.is_empty() {
            return false;
        }
        let (passwd, group) = (read(&self.passwd), read(&self.group));
        let name = passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, number) = (fields.next()?, fields.nth(1)?);
            (number.parse() == Ok(uid)).then_some(name)
        });
        group.lines().any(|line| {
            let mut fields = line.split(':');
            let (Some(group), Some(number), Some(members)) = (fields.next(), fields.nth(1), fields.next()) else {
                return false;
            };
            let configured = self.groups.iter().any(|wanted| wanted == group || wanted == number);
            let is_member = name.is_some_and(|name| members.split(',').any(|member| member == name));
            configured && (number.parse() == Ok(gid) || is_member)
        })
    }
}

/// The text of a file; nothing when it cannot be read, and then nobody is a member.
fn read(path: &std::path::Path) -> String {
    let small = std::fs::metadata(path).is_ok_and(|file| file.len() <= FILE_BYTES_MAX);
    if small { std::fs::read_to_string(path).unwrap_or_default() } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn role(members: &Members, uid: u32, gid: u32) -> AdminRole {
        let Actor::LocalUser { role, .. } = members.actor(uid, gid) else { panic!("a local user") };
        role
    }

    #[test]
    fn administrators_are_root_those_listed_and_members_of_listed_groups() {
        let folder = tempfile::tempdir().expect("folder");
        let (passwd, group) = (folder.path().join("passwd"), folder.path().join("group"));
        std::fs::write(&passwd, "root:x:0:0::/:/sh\nann:x:4001:4001::/:/sh\nbob:x:4002:4002::/:/sh\n").expect("write");
        std::fs::write(&group, "ann:x:4001:\nclinic:x:4900:x,ann\nother:x:4901:bob\n").expect("write");
        let mut members = Members { passwd, group, ..Members::new(&[4007], &["clinic".to_owned()]) };
        assert_eq!(role(&members, 0, 0), AdminRole::Administrator);
        assert_eq!(role(&members, 4007, 4007), AdminRole::Administrator);
        assert_eq!(role(&members, 4001, 4001), AdminRole::Administrator, "supplementary member");
        assert_eq!(role(&members, 4003, 4900), AdminRole::Administrator, "primary group");
        assert_eq!(role(&members, 4002, 4002), AdminRole::Observer, "member of another group");
        members.groups = vec!["4901".to_owned()];
        assert_eq!(role(&members, 4002, 4002), AdminRole::Administrator, "group by number");
        members.groups.clear();
        assert_eq!(role(&members, 4001, 4900), AdminRole::Observer, "no group configured");
    }
}
