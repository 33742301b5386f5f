//! Friends, requests and blocks.

use super::world::World;
use crate::api::accounts::Standing::{Asked, Friends, None as Nothing, Requested};
use crate::api::accounts::{AccountError, Caller, Standing, limits};

async fn list(world: &World, of: &Caller) -> Vec<(String, Standing)> {
    let page = world.accounts.friends(of, None, 50).await.expect("a list");
    assert_eq!(page.next, None);
    let mut list: Vec<_> =
        page.rows.into_iter().map(|friend| (friend.profile.handle, friend.standing)).collect();
    list.sort_by(|one, other| one.0.cmp(&other.0));
    list
}

async fn two(world: &World) -> (Caller, Caller) {
    let (alice, bob) = (world.sign_up("alice").await, world.sign_up("bob").await);
    (world.caller(&alice), world.caller(&bob))
}

pub async fn friends_ask_accept_refuse_and_part(world: World) {
    let (alice, bob) = two(&world).await;
    let accounts = &world.accounts;
    for _ in 0..2 {
        assert_eq!(accounts.befriend(&alice, "Bob").await.expect("a user"), Requested);
    }
    assert_eq!(list(&world, &alice).await, [("bob".to_owned(), Requested)]);
    assert_eq!(list(&world, &bob).await, [("alice".to_owned(), Asked)]);
    assert_eq!(accounts.befriend(&bob, "alice").await.expect("a user"), Friends);
    assert_eq!(list(&world, &alice).await, [("bob".to_owned(), Friends)]);
    assert_eq!(accounts.standing(&bob, &alice.account).await.expect("a read"), Friends);
    for _ in 0..2 {
        accounts.unfriend(&alice, "bob").await.expect("a user");
    }
    assert_eq!((list(&world, &alice).await, list(&world, &bob).await), (vec![], vec![]));

    accounts.befriend(&alice, "bob").await.expect("a user");
    accounts.unfriend(&bob, "alice").await.expect("a refusal");
    assert_eq!(accounts.standing(&alice, &bob.account).await.expect("a read"), Nothing);
    assert_eq!(world.count("relations").await, 0);

    let own = accounts.befriend(&alice, "alice").await;
    assert!(matches!(own, Err(AccountError::Invalid { field: "handle", .. })), "{own:?}");
    let nobody = accounts.befriend(&alice, "nobody1").await;
    assert!(matches!(nobody, Err(AccountError::UnknownUser)), "{nobody:?}");
}

pub async fn who_is_blocked_does_not_learn_it(world: World) {
    let (alice, bob) = two(&world).await;
    let accounts = &world.accounts;
    accounts.befriend(&alice, "bob").await.expect("a user");
    accounts.befriend(&bob, "alice").await.expect("a user");
    accounts.block(&bob, "alice").await.expect("a user");
    accounts.block(&bob, "alice").await.expect("the same again");
    assert_eq!(accounts.standing(&alice, &bob.account).await.expect("a read"), Nothing);
    assert_eq!(accounts.befriend(&alice, "bob").await.expect("a user"), Requested);
    assert_eq!(list(&world, &alice).await, [("bob".to_owned(), Requested)]);
    assert_eq!(list(&world, &bob).await, []);
    assert_eq!(accounts.standing(&bob, &alice.account).await.expect("a read"), Nothing);
    let mine = accounts.befriend(&bob, "alice").await;
    assert!(matches!(mine, Err(AccountError::Blocked)), "{mine:?}");
    let blocks = accounts.blocks(&bob, None, 50).await.expect("a list").rows;
    assert_eq!(blocks.iter().map(|profile| &*profile.handle).collect::<Vec<_>>(), ["alice"]);
    assert_eq!(accounts.blocks(&alice, None, 50).await.expect("a list").rows, []);
    for (one, other) in [(&alice, &bob), (&bob, &alice)] {
        let blocked = accounts.blocked_between(&one.account, &other.account).await;
        assert!(blocked.expect("a read"));
    }
    accounts.unblock(&bob, "alice").await.expect("a user");
    assert!(!accounts.blocked_between(&alice.account, &bob.account).await.expect("a read"));
    assert_eq!(list(&world, &bob).await, [("alice".to_owned(), Asked)]);
}

pub async fn two_who_ask_at_once_are_friends(world: World) {
    let (alice, bob) = two(&world).await;
    let other = world.another().await;
    let (one, two) = tokio::join!(
        world.accounts.befriend(&alice, "bob"),
        other.accounts.befriend(&bob, "alice"),
    );
    let mut standings = [one.expect("a user"), two.expect("a user")];
    standings.sort_by_key(|standing| *standing == Friends);
    assert_eq!(standings, [Requested, Friends]);
    assert_eq!(world.accounts.standing(&alice, &bob.account).await.expect("a read"), Friends);
}

pub async fn lists_come_in_pages(world: World) {
    let alice = world.caller(&world.sign_up("alice").await);
    for n in 10..17 {
        let handle = format!("user{n}");
        let other = world.caller(&world.sign_up(&handle).await);
        world.accounts.befriend(&other, "alice").await.expect("a user");
        world.accounts.befriend(&alice, &handle).await.expect("a user");
    }
    let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page = world.accounts.friends(&alice, after.as_deref(), 3).await.expect("a page");
        found.extend(page.rows.into_iter().map(|friend| friend.profile.handle));
        pages += 1;
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    found.sort();
    assert_eq!((pages, found.len()), (3, 7));
    found.dedup();
    assert_eq!(found.len(), 7);
    let bad = world.accounts.friends(&alice, Some("x' OR 1=1"), 3).await;
    assert!(matches!(bad, Err(AccountError::Invalid { field: "after", .. })), "{bad:?}");
}

pub async fn requests_are_bounded(world: World) {
    let (alice, bob) = two(&world).await;
    for _ in 1..limits::RELATION_CHANGES_BURST {
        world.accounts.befriend(&alice, "bob").await.expect("within the burst");
    }
    world.accounts.block(&alice, "bob").await.expect("the last one");
    let more = world.accounts.befriend(&alice, "bob").await;
    assert!(matches!(more, Err(AccountError::Limited { retry_after_ms: 1.. })), "{more:?}");
    world.accounts.unblock(&alice, "bob").await.expect("to take back is free");
    world.accounts.befriend(&bob, "alice").await.expect("bob has his own");

    let row = "INSERT INTO relations (owner, peer, asks, blocks, changed_ms) VALUES";
    let account = "INSERT INTO accounts (id, handle, skeleton, password, name, avatar, status, \
                   settings, created_ms, deleting, version) VALUES";
    let ids = (0..limits::REQUESTS_MAX).map(|n| format!("{n:032x}"));
    let accounts = ids.clone().map(|id| format!("('{id}','{id}','{id}','','','','','{{}}',0,0,0)"));
    world.execute(format!("{account} {}", accounts.collect::<Vec<_>>().join(","))).await;
    let bob = bob.account;
    let rows = ids.map(|id| format!("('{id}', '{bob}', 1, 0, 0)")).collect::<Vec<_>>().join(",");
    world.execute(format!("{row} {rows}")).await;
    let carol = world.caller(&world.sign_up("carol").await);
    let full = world.accounts.befriend(&carol, "bob").await;
    assert!(matches!(full, Err(AccountError::LimitReached { .. })), "{full:?}");
}
