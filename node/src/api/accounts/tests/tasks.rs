//! Export, deletion, and the tasks that carry it out.

use std::time::Duration;

use serde_json::json;

use super::world::{PASSWORD, World};
use crate::api::accounts::{AccountError, Caller, Change, DeadTask, limits};

async fn two(world: &World) -> (Caller, Caller) {
    let (alice, bob) = (world.sign_up("alice").await, world.sign_up("bob").await);
    world.accounts.befriend(&world.caller(&alice), "bob").await.expect("a user");
    world.accounts.befriend(&world.caller(&bob), "alice").await.expect("a user");
    (world.caller(&alice), world.caller(&bob))
}

pub async fn everything_of_mine_is_exported(world: World) {
    let (alice, bob) = two(&world).await;
    world.sign_up("carol").await;
    world.accounts.block(&alice, "carol").await.expect("a user");
    let export = world.accounts.export(&alice).await.expect("an export");
    assert_eq!((&export["handle"], &export["user"]), (&json!("alice"), &json!(alice.account.0)));
    assert_eq!(export["devices"][0]["label"], "phone");
    assert_eq!(export["sessions"][0]["created_ms"], world.now_ms());
    let friend = json!({
        "user": bob.account.0, "handle": "bob", "standing": "friends", "since_ms": world.now_ms(),
    });
    assert_eq!(export["friends"], json!([friend]));
    assert_eq!(export["blocks"][0]["handle"], "carol");
    let text = export.to_string();
    assert!(!text.contains("argon2") && !text.contains("hash"), "{text}");
}

pub async fn a_deleted_account_is_gone_and_its_handle_retired(world: World) {
    let (alice, bob) = two(&world).await;
    let accounts = &world.accounts;
    let wrong = accounts.delete_account(&alice, "not the password").await;
    assert!(matches!(wrong, Err(AccountError::WrongCredentials)), "{wrong:?}");
    let signed_in = world.log_in("alice", 2).await;
    accounts.delete_account(&alice, PASSWORD).await.expect("the password was right");
    // At once, before any task has run.
    assert!(world.token_error(&signed_in).is_some());
    assert!(matches!(accounts.me(&alice).await, Err(AccountError::UnknownUser)));
    assert!(matches!(accounts.user("alice").await, Err(AccountError::UnknownUser)));
    let back = world.try_log_in("alice", PASSWORD, 1).await;
    assert!(matches!(back, Err(AccountError::WrongCredentials)), "{back:?}");
    let friends = accounts.friends(&bob, None, 50).await.expect("a list");
    assert_eq!(friends.rows, []);

    assert_eq!(accounts.tasks().await.expect("a read").waiting, 1);
    accounts.run_due_tasks().await.expect("nothing fails");
    let tasks = accounts.tasks().await.expect("a read");
    assert_eq!((tasks.waiting, tasks.dead.len(), world.figure("tasks_done")), (0, 0, 1));
    for table in ["accounts", "devices", "sessions"] {
        assert_eq!(world.count(table).await, 1, "bob's row in {table}");
    }
    assert_eq!(world.count("relations").await, 0);
    for handle in ["alice", "a1ice"] {
        let again = world.try_sign_up(handle).await;
        assert!(matches!(again, Err(AccountError::HandleTaken)), "{handle}: {again:?}");
    }
    let told = accounts.take_projections(100, Duration::from_secs(1)).await.expect("a read");
    let told: Vec<_> = told.into_iter().map(|one| one.change).collect();
    assert!(told.contains(&Change::AccountDeleted { account: alice.account.clone() }));
    let (owner, peer) = (bob.account, alice.account);
    let parted = Change::Relation { owner, peer, friends: false, blocked: false };
    assert!(told.contains(&parted), "{told:?}");
}

pub async fn a_deletion_in_many_steps_outlives_a_crash(world: World) {
    let (alice, _) = two(&world).await;
    let ids = (0..limits::DELETE_ROWS_MAX).map(|n| format!("{n:032x}"));
    let account = "INSERT INTO accounts (id, handle, skeleton, password, name, avatar, status, \
                   settings, created_ms, deleting, version) VALUES";
    let rows = ids.clone().map(|id| format!("('{id}','{id}','{id}','','','','','{{}}',0,0,0)"));
    world.execute(format!("{account} {}", rows.collect::<Vec<_>>().join(","))).await;
    let row = "INSERT INTO relations (owner, peer, asks, blocks, changed_ms) VALUES";
    let rows = ids.map(|id| format!("('{id}', '{}', 1, 0, 0)", alice.account));
    world.execute(format!("{row} {}", rows.collect::<Vec<_>>().join(","))).await;
    world.accounts.delete_account(&alice, PASSWORD).await.expect("the password was right");
    // Dropped between its two steps, like a process that dies.
    let mut running = Box::pin(world.accounts.run_due_tasks());
    while world.count("relations").await > 2 {
        tokio::select! {
            biased;
            done = &mut running => panic!("two steps in one: {done:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    drop(running);
    assert_eq!(world.count("relations").await, 2);
    world.pass_ms(limits::TASK_LEASE_MS);
    let world = world.reopened_with(|_| {}).await;
    world.accounts.run_due_tasks().await.expect("nothing fails");
    assert_eq!(world.accounts.tasks().await.expect("a read").waiting, 0);
    assert_eq!(world.count("relations").await, 0);
    assert_eq!(world.count("accounts").await, 1 + limits::DELETE_ROWS_MAX as u64);
}

pub async fn a_task_that_fails_is_tried_again_and_ends_with_the_dead_letters(world: World) {
    world
        .execute(
            "INSERT INTO tasks (id, kind, account, vests_ms, attempts, last_error, dead) \
             VALUES ('t1', 'fold_laundry', 'a1', 0, 0, '', 0)"
                .to_owned(),
        )
        .await;
    let failed = |times| assert_eq!(world.figure("tasks_failed"), times);
    world.accounts.run_due_tasks().await.expect("it goes on");
    failed(1);
    world.accounts.run_due_tasks().await.expect("it goes on");
    failed(1);
    world.pass_ms(limits::TASK_RETRY_MS);
    world.accounts.run_due_tasks().await.expect("it goes on");
    failed(2);
    for _ in 0..20 {
        world.pass_ms(limits::TASK_RETRY_MS_MAX);
        world.accounts.run_due_tasks().await.expect("it goes on");
    }
    failed(u64::from(limits::TASK_ATTEMPTS_MAX));
    let tasks = world.accounts.tasks().await.expect("a read");
    assert_eq!(tasks.waiting, 0);
    let [DeadTask { id, kind, last_error, .. }] = &tasks.dead[..] else { panic!("{tasks:?}") };
    assert_eq!((&**id, &**kind), ("t1", "fold_laundry"));
    assert!(last_error.contains("fold_laundry"), "{last_error}");
    assert_eq!(world.figure("tasks_dead"), 1);
    world.accounts.retry_task(id).await.expect("a write");
    world.accounts.run_due_tasks().await.expect("it goes on");
    failed(u64::from(limits::TASK_ATTEMPTS_MAX) + 1);
}
