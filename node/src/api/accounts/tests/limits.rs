//! What is done against those who try too often.

use std::net::IpAddr;

use super::world::{FROM, PASSWORD, World, log_in, sign_up};
use crate::api::accounts::AccountError;

fn is_limited<T: std::fmt::Debug>(answer: &Result<T, AccountError>) -> bool {
    matches!(answer, Err(AccountError::Limited { retry_after_ms: 1.. }))
}

pub async fn sign_ups_and_log_ins_are_bounded_by_address(world: World) {
    let world = world
        .reopened_with(|config| {
            config.sign_ups_per_ip_burst = 3;
            config.log_ins_per_ip_burst = 3;
        })
        .await;
    let other: IpAddr = "2001:db8::1".parse().expect("an address");
    for n in 0..3 {
        world.sign_up(&format!("user{n}")).await;
        world.log_in("user0", 1).await;
    }
    assert!(is_limited(&world.try_sign_up("user3").await));
    assert!(is_limited(&world.try_log_in("user0", PASSWORD, 1).await), "good ones count, too");
    world.accounts.sign_up(other, &sign_up("user3")).await.expect("another address");
    world.accounts.log_in(other, &log_in("user0", PASSWORD, 1)).await.expect("another address");
    assert_eq!((world.figure("sign_ups_limited"), world.figure("log_ins_limited")), (1, 1));
    world.pass_ms(3_600_000);
    world.sign_up("user4").await;
}

pub async fn wrong_passwords_are_bounded_by_handle_and_lock_no_device_out(world: World) {
    let world = world.reopened_with(|config| config.log_ins_per_handle_burst = 3).await;
    let alice = world.sign_up("alice").await;
    for handle in ["alice", "nobody1"] {
        for _ in 0..3 {
            let wrong = world.try_log_in(handle, "not the password", 9).await;
            assert!(matches!(wrong, Err(AccountError::WrongCredentials)), "{handle}");
        }
        let limited = world.try_log_in(handle, "not the password", 9).await;
        assert!(is_limited(&limited), "{handle}: {limited:?}");
    }
    let limited = world.try_log_in("alice", PASSWORD, 9).await;
    assert!(is_limited(&limited), "not even the right one: {limited:?}");
    for _ in 0..10 {
        world.log_in("alice", 1).await;
    }
    let caller = world.caller(&world.log_in("alice", 1).await);
    assert_eq!(caller.account, alice.account);
    for _ in 0..3 {
        let _ = world.accounts.change_password(&caller, "not the password", "another one").await;
    }
    let limited = world.accounts.change_password(&caller, PASSWORD, "another one").await;
    assert!(is_limited(&limited), "{limited:?}");
    world.pass_ms(3_600_000);
    world.log_in("alice", 9).await;
}

pub async fn a_flood_of_log_ins_is_answered_busy(world: World) {
    let world = world
        .reopened_with(|config| {
            config.password_queue_max = 2;
            config.password_memory_kib = 32_768;
        })
        .await;
    world.sign_up("alice").await;
    let flood = (0..20).map(|n| {
        let accounts = world.accounts.clone();
        let one = log_in(&format!("nobody{n}"), PASSWORD, 1);
        tokio::spawn(async move { accounts.log_in(FROM, &one).await })
    });
    let (mut busy, mut wrong) = (0, 0);
    for answer in flood.collect::<Vec<_>>() {
        match answer.await.expect("no panic") {
            Err(AccountError::Busy { .. }) => busy += 1,
            Err(AccountError::WrongCredentials) => wrong += 1,
            other => panic!("{other:?}"),
        }
    }
    assert!(busy >= 10 && wrong >= 1, "{busy} busy, {wrong} compared");
    assert_eq!((world.figure("busy"), world.figure("password_queue")), (busy, 0));
    world.log_in("alice", 1).await;
}
