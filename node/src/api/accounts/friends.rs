//! Friends and blocks.
//!
//! Each user has a row of its own for each other user: whether it *asks* for friendship, and
//! whether it *blocks*. Friends are two who ask for each other. A request to somebody who blocks is
//! taken like any other, and is not shown there: who is blocked does not learn it here.

use sqlx::any::AnyRow;

use super::Accounts;
use super::db::{Tx, number, retried, stored, text};
use super::error::AccountError;
use super::handle::Handle;
use super::limits::{BLOCKS_MAX, FRIENDS_MAX, PAGE_ROWS_MAX, REQUESTS_MAX};
use super::outbox::{Change, tell};
use super::profile::profile;
use super::types::{AccountId, Caller, Friend, Page, Profile, Standing};

/// How one user stands to another, one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct View {
    asks: bool,
    blocks: bool,
}

/// What a user wants.
#[derive(Clone, Copy)]
enum Wish {
    Befriend,
    Unfriend,
    Block,
    Unblock,
}

impl Accounts {
    /// Asks a user for friendship, or accepts its request. Saying it again does nothing.
    ///
    /// Errors: `UnknownUser`, `Invalid` (oneself), `Blocked`, `LimitReached`, `Limited`,
    /// `Database`.
    pub async fn befriend(&self, caller: &Caller, handle: &str) -> Result<Standing, AccountError> {
        Ok(self.relate(caller, handle, Wish::Befriend).await?.0)
    }

    /// Takes a request back, refuses one, or ends a friendship. Saying it again does nothing.
    ///
    /// Errors: `UnknownUser`, `Invalid`, `Database`.
    pub async fn unfriend(&self, caller: &Caller, handle: &str) -> Result<(), AccountError> {
        self.relate(caller, handle, Wish::Unfriend).await.map(drop)
    }

    /// Blocks a user; friendship and requests between the two end. Gives who that is: the chat must
    /// learn of it before anybody is told that it holds.
    ///
    /// Errors: `UnknownUser`, `Invalid`, `LimitReached`, `Limited`, `Database`.
    pub async fn block(&self, caller: &Caller, handle: &str) -> Result<AccountId, AccountError> {
        Ok(self.relate(caller, handle, Wish::Block).await?.1)
    }

    /// Blocks a user no more. Gives who that is.
    ///
    /// Errors: `UnknownUser`, `Invalid`, `Database`.
    pub async fn unblock(&self, caller: &Caller, handle: &str) -> Result<AccountId, AccountError> {
        Ok(self.relate(caller, handle, Wish::Unblock).await?.1)
    }

    /// How the caller stands to a user, as it sees it itself.
    pub async fn standing(
        &self,
        caller: &Caller,
        peer: &AccountId,
    ) -> Result<Standing, AccountError> {
        let find = "SELECT owner, asks, blocks FROM relations \
                    WHERE (owner = $1 AND peer = $2) OR (owner = $2 AND peer = $1)";
        let rows = sqlx::query(find).bind(caller.account.as_str()).bind(peer.as_str());
        let rows = rows.fetch_all(self.inner.db.pool()).await?;
        let (mine, theirs) = views(&rows, &caller.account)?;
        Ok(seen(mine, theirs))
    }

    /// Whether either of the two has blocked the other.
    pub async fn blocked_between(
        &self,
        one: &AccountId,
        other: &AccountId,
    ) -> Result<bool, AccountError> {
        let find = "SELECT 1 FROM relations WHERE blocks = 1 AND \
                        ((owner = $1 AND peer = $2) OR (owner = $2 AND peer = $1)) LIMIT 1";
        let row = sqlx::query(find).bind(one.as_str()).bind(other.as_str());
        Ok(row.fetch_optional(self.inner.db.pool()).await?.is_some())
    }

    /// A page of the caller's friends and of requests in both directions, ascending by account.
    /// `after` is what the page before gave as `next`.
    pub async fn friends(
        &self,
        caller: &Caller,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<Friend>, AccountError> {
        let find = "SELECT a.id, a.handle, a.name, a.avatar, a.status, \
                        COALESCE(m.asks, 0), COALESCE(m.blocks, 0), \
                        COALESCE(t.asks, 0), COALESCE(t.blocks, 0), \
                        COALESCE(m.changed_ms, 0), COALESCE(t.changed_ms, 0) \
                    FROM (SELECT peer AS id FROM relations WHERE owner = $1 AND asks = 1 \
                          UNION SELECT owner AS id FROM relations WHERE peer = $1 AND asks = 1) p \
                    JOIN accounts a ON a.id = p.id \
                    LEFT JOIN relations m ON m.owner = $1 AND m.peer = a.id \
                    LEFT JOIN relations t ON t.owner = a.id AND t.peer = $1 \
                    WHERE a.id > $2 AND a.deleting = 0 \
                        AND (COALESCE(m.asks, 0) = 1 OR COALESCE(m.blocks, 0) = 0) \
                    ORDER BY a.id LIMIT $3";
        let rows = self.page(find, caller, after, limit).await?;
        page(rows, limit, friend, |friend| &friend.profile)
    }

    /// A page of the users that the caller has blocked, ascending by account.
    pub async fn blocks(
        &self,
        caller: &Caller,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page<Profile>, AccountError> {
        let find = "SELECT a.id, a.handle, a.name, a.avatar, a.status \
                    FROM relations r JOIN accounts a ON a.id = r.peer \
                    WHERE r.owner = $1 AND r.blocks = 1 AND a.id > $2 AND a.deleting = 0 \
                    ORDER BY a.id LIMIT $3";
        let rows = self.page(find, caller, after, limit).await?;
        page(rows, limit, profile, |profile| profile)
    }

    /// One row more than the page has tells whether there is another page.
    async fn page(
        &self,
        find: &'static str,
        caller: &Caller,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Vec<AnyRow>, AccountError> {
        let after = after.unwrap_or_default();
        if !after.is_empty() && AccountId::parse(after).is_none() {
            return Err(AccountError::invalid("after", "is not what a page has given"));
        }
        let rows = sqlx::query(find).bind(caller.account.as_str()).bind(after.to_owned());
        let rows = rows.bind(page_rows(limit) as i64 + 1);
        Ok(rows.fetch_all(self.inner.db.pool()).await?)
    }

    async fn relate(
        &self,
        caller: &Caller,
        handle: &str,
        wish: Wish,
    ) -> Result<(Standing, AccountId), AccountError> {
        let handle = Handle::parse(handle).map_err(|_| AccountError::UnknownUser)?;
        if matches!(wish, Wish::Befriend | Wish::Block) {
            let limited = |retry_after_ms| AccountError::Limited { retry_after_ms };
            let relations = &self.inner.limits.relations;
            relations.take(&caller.account, self.now_ms()).map_err(limited)?;
        }
        let (related, changed) = retried!(self.relate_once(&caller.account, &handle, wish))?;
        if changed {
            self.told();
        }
        Ok(related)
    }

    async fn relate_once(
        &self,
        me: &AccountId,
        handle: &Handle,
        wish: Wish,
    ) -> Result<((Standing, AccountId), bool), AccountError> {
        let now_ms = self.now_ms();
        let mut tx = self.inner.db.begin().await?;
        let peer = find_peer(&mut tx, me, handle).await?;
        let find = "SELECT owner, asks, blocks FROM relations \
                    WHERE (owner = $1 AND peer = $2) OR (owner = $2 AND peer = $1)";
        let rows = sqlx::query(find).bind(me.as_str()).bind(peer.as_str());
        let was = views(&rows.fetch_all(tx.on()).await?, me)?;
        let (mut mine, mut theirs) = was;
        match wish {
            Wish::Befriend if mine.blocks => return Err(AccountError::Blocked),
            Wish::Befriend => mine.asks = true,
            Wish::Unfriend => (mine.asks, theirs.asks) = (false, false),
            Wish::Block => (mine, theirs.asks) = (View { asks: false, blocks: true }, false),
            Wish::Unblock => mine.blocks = false,
        }
        if (mine, theirs) == was {
            return Ok(((seen(mine, theirs), peer), false));
        }
        check_limits(&mut tx, me, &peer, was, mine).await?;
        for (owner, other, before, after) in [(me, &peer, was.0, mine), (&peer, me, was.1, theirs)]
        {
            if before != after {
                put(&mut tx, owner, other, after, now_ms).await?;
            }
        }
        let friends = |(one, other): (View, View)| one.asks && other.asks;
        let (befriended, now_friends) = (friends(was), friends((mine, theirs)));
        for (owner, other, before, after) in [(me, &peer, was.0, mine), (&peer, me, was.1, theirs)]
        {
            // Open requests are no matter of the chat store.
            if befriended != now_friends || before.blocks != after.blocks {
                let change = Change::Relation {
                    owner: owner.clone(),
                    peer: other.clone(),
                    friends: now_friends,
                    blocked: after.blocks,
                };
                tell(&mut tx, change, now_ms).await?;
            }
        }
        tx.commit().await?;
        Ok(((seen(mine, theirs), peer), true))
    }
}

/// The other user. Neither account may be about to be deleted.
async fn find_peer(
    tx: &mut Tx,
    me: &AccountId,
    handle: &Handle,
) -> Result<AccountId, AccountError> {
    let find = "SELECT id FROM accounts WHERE handle = $1 AND deleting = 0";
    let peer = sqlx::query(find).bind(handle.as_str()).fetch_optional(tx.on()).await?;
    let own = "SELECT id FROM accounts WHERE id = $1 AND deleting = 0";
    let own = sqlx::query(own).bind(me.as_str()).fetch_optional(tx.on()).await?;
    let (Some(peer), Some(_)) = (peer, own) else { return Err(AccountError::UnknownUser) };
    let peer = AccountId(text(&peer, 0)?);
    if peer == *me {
        return Err(AccountError::invalid("handle", "is your own"));
    }
    Ok(peer)
}

async fn check_limits(
    tx: &mut Tx,
    me: &AccountId,
    peer: &AccountId,
    was: (View, View),
    mine: View,
) -> Result<(), AccountError> {
    let (asked, blocked) = (mine.asks && !was.0.asks, mine.blocks && !was.0.blocks);
    let limits = [
        (
            asked,
            "SELECT COUNT(*) FROM relations WHERE owner = $1 AND asks = 1",
            me,
            "friends and requests",
            FRIENDS_MAX,
        ),
        (
            blocked,
            "SELECT COUNT(*) FROM relations WHERE owner = $1 AND blocks = 1",
            me,
            "blocks",
            BLOCKS_MAX,
        ),
        (
            // One that answers a request is none.
            asked && !was.1.asks,
            "SELECT COUNT(*) FROM relations r WHERE r.peer = $1 AND r.asks = 1 AND NOT EXISTS \
                 (SELECT 1 FROM relations m WHERE m.owner = $1 AND m.peer = r.owner \
                  AND m.asks = 1)",
            peer,
            "open requests to this user",
            REQUESTS_MAX,
        ),
    ];
    for (checked, count, whose, what, max) in limits {
        if checked {
            let row = sqlx::query(count).bind(whose.as_str()).fetch_one(tx.on()).await?;
            if number(&row, 0)? >= max as u64 {
                return Err(AccountError::LimitReached { what, max });
            }
        }
    }
    Ok(())
}

async fn put(
    tx: &mut Tx,
    owner: &AccountId,
    peer: &AccountId,
    view: View,
    now_ms: u64,
) -> Result<(), AccountError> {
    let query = match view == View::default() {
        true => {
            let remove = "DELETE FROM relations WHERE owner = $1 AND peer = $2";
            sqlx::query(remove).bind(owner.as_str()).bind(peer.as_str())
        }
        false => {
            let put = "INSERT INTO relations (owner, peer, asks, blocks, changed_ms) \
                       VALUES ($1, $2, $3, $4, $5) \
                       ON CONFLICT (owner, peer) DO UPDATE SET asks = excluded.asks, \
                           blocks = excluded.blocks, changed_ms = excluded.changed_ms";
            let put = sqlx::query(put).bind(owner.as_str()).bind(peer.as_str());
            put.bind(i64::from(view.asks)).bind(i64::from(view.blocks)).bind(stored(now_ms))
        }
    };
    query.execute(tx.on()).await?;
    Ok(())
}

/// Mine and theirs.
fn views(rows: &[AnyRow], me: &AccountId) -> Result<(View, View), AccountError> {
    let (mut mine, mut theirs) = (View::default(), View::default());
    for row in rows {
        let view = View { asks: number(row, 1)? != 0, blocks: number(row, 2)? != 0 };
        *if text(row, 0)? == me.0 { &mut mine } else { &mut theirs } = view;
    }
    Ok((mine, theirs))
}

/// What I see: not that they block me, and nothing of those whom I block.
fn seen(mine: View, theirs: View) -> Standing {
    match (mine.asks, theirs.asks && !mine.blocks) {
        (false, false) => Standing::None,
        (true, false) => Standing::Requested,
        (false, true) => Standing::Asked,
        (true, true) => Standing::Friends,
    }
}

fn friend(row: &AnyRow) -> Result<Friend, AccountError> {
    let view = |n| {
        Ok::<_, AccountError>(View { asks: number(row, n)? != 0, blocks: number(row, n + 1)? != 0 })
    };
    let standing = seen(view(5)?, view(7)?);
    let (mine_ms, theirs_ms) = (number(row, 9)?, number(row, 10)?);
    let since_ms = match standing {
        Standing::Requested | Standing::None => mine_ms,
        Standing::Asked => theirs_ms,
        Standing::Friends => mine_ms.max(theirs_ms),
    };
    Ok(Friend { profile: profile(row)?, standing, since_ms })
}

fn page_rows(limit: usize) -> usize {
    limit.clamp(1, PAGE_ROWS_MAX)
}

fn page<T>(
    mut rows: Vec<AnyRow>,
    limit: usize,
    decode: impl Fn(&AnyRow) -> Result<T, AccountError>,
    profile: impl Fn(&T) -> &Profile,
) -> Result<Page<T>, AccountError> {
    let more = rows.len() > page_rows(limit);
    rows.truncate(page_rows(limit));
    let rows: Vec<T> = rows.iter().map(decode).collect::<Result<_, _>>()?;
    let next = rows.last().filter(|_| more).map(|last| profile(last).account.to_string());
    Ok(Page { rows, next })
}
