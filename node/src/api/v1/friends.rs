//! Friends and blocks.

use axum::extract::State;
use chatring_wire::ErrorCode;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::profile::{HandlePath, User};
use crate::api::Shared;
use crate::api::accounts::{About, Friend, Standing};
use crate::api::extract::{Account, Answer, Db, InPath, InQuery, Nothing};
use crate::api::problem::Problem;

/// Rows of a page, if the request does not say how many.
const PAGE_ROWS: u16 = 50;
/// Most rows of a page.
const PAGE_ROWS_MAX: u16 = 200;

/// Which page of a list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    /// `next` of the page before.
    #[schemars(regex(pattern = "^([0-9a-f]{32})?$"))]
    after: Option<String>,
    /// How many, 1 to 200; 50 if it is left out.
    #[schemars(range(min = 1, max = PAGE_ROWS_MAX))]
    limit: Option<u16>,
}

/// A page of friends and requests.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Friends {
    /// Friends, and those who asked or were asked.
    friends: Vec<FriendBody>,
    /// Give it as `after` for the next page; null at the end.
    next: Option<String>,
}

/// How two users stand.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct FriendBody {
    /// Who.
    user: User,
    /// How we stand.
    standing: StandingName,
    /// Unix time since when, in milliseconds.
    since_ms: u64,
}

/// How a user and I stand.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct StandingBody {
    /// How we stand.
    standing: StandingName,
}

/// How two users stand.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum StandingName {
    /// Nothing.
    None,
    /// I have asked.
    Requested,
    /// I was asked.
    Asked,
    /// We are friends.
    Friends,
}

/// A page of the users that I have blocked.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Blocks {
    /// Who.
    users: Vec<User>,
    /// Give it as `after` for the next page; null at the end.
    next: Option<String>,
}

pub(super) async fn list(
    Account(caller): Account,
    Db(accounts): Db,
    InQuery(query): InQuery<PageQuery>,
) -> Result<Answer<Friends>, Problem> {
    let limit = query.limit()?;
    let page = accounts.friends(&caller, query.after.as_deref(), limit).await?;
    let friends = page.rows.into_iter().map(friend_body).collect();
    Ok(Answer(Friends { friends, next: page.next }))
}

pub(super) async fn befriend(
    Account(caller): Account,
    Db(accounts): Db,
    InPath(path): InPath<HandlePath>,
) -> Result<Answer<StandingBody>, Problem> {
    let standing = accounts.befriend(&caller, &path.handle).await?;
    Ok(Answer(StandingBody { standing: standing.into() }))
}

pub(super) async fn unfriend(
    Account(caller): Account,
    Db(accounts): Db,
    InPath(path): InPath<HandlePath>,
) -> Result<Nothing, Problem> {
    accounts.unfriend(&caller, &path.handle).await?;
    Ok(Nothing)
}

pub(super) async fn blocks(
    Account(caller): Account,
    Db(accounts): Db,
    InQuery(query): InQuery<PageQuery>,
) -> Result<Answer<Blocks>, Problem> {
    let limit = query.limit()?;
    let page = accounts.blocks(&caller, query.after.as_deref(), limit).await?;
    let users = page.rows.into_iter().map(User::from).collect();
    Ok(Answer(Blocks { users, next: page.next }))
}

/// Answered once it holds: no later send between the two is taken.
pub(super) async fn block(
    State(state): State<Shared>,
    Account(caller): Account,
    Db(accounts): Db,
    InPath(path): InPath<HandlePath>,
) -> Result<Nothing, Problem> {
    let peer = accounts.block(&caller, &path.handle).await?;
    state.follow(&accounts, About::Relation(&caller.account, &peer)).await.map_err(not_yet)?;
    Ok(Nothing)
}

pub(super) async fn unblock(
    State(state): State<Shared>,
    Account(caller): Account,
    Db(accounts): Db,
    InPath(path): InPath<HandlePath>,
) -> Result<Nothing, Problem> {
    let peer = accounts.unblock(&caller, &path.handle).await?;
    state.follow(&accounts, About::Relation(&caller.account, &peer)).await.map_err(not_yet)?;
    Ok(Nothing)
}

fn not_yet(problem: Problem) -> Problem {
    tracing::warn!(why = problem.code().name(), "a block does not hold at once");
    let detail = "it is noted and will hold soon; ask again to learn when it does";
    Problem::new(ErrorCode::Unavailable).detail(detail)
}

impl PageQuery {
    fn limit(&self) -> Result<usize, Problem> {
        let limit = self.limit.unwrap_or(PAGE_ROWS);
        match (1..=PAGE_ROWS_MAX).contains(&limit) {
            true => Ok(limit.into()),
            false => Err(Problem::invalid("limit", format!("must be 1 to {PAGE_ROWS_MAX}"))),
        }
    }
}

impl From<Standing> for StandingName {
    fn from(standing: Standing) -> StandingName {
        match standing {
            Standing::None => StandingName::None,
            Standing::Requested => StandingName::Requested,
            Standing::Asked => StandingName::Asked,
            Standing::Friends => StandingName::Friends,
        }
    }
}

fn friend_body(friend: Friend) -> FriendBody {
    let (user, standing) = (User::from(friend.profile), friend.standing.into());
    FriendBody { user, standing, since_ms: friend.since_ms }
}
