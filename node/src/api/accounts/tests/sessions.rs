//! Log-ins, their tokens and their devices.

use chatring_wire::{DeviceId, ErrorCode};

use super::world::{PASSWORD, World, installation};
use crate::api::accounts::{AccountError, DeviceName, SignedIn, SignedInState, limits};

async fn is_dead(world: &World, signed_in: &SignedIn) -> bool {
    let answer = world.accounts.refresh(&signed_in.refresh_token, None).await;
    let refused = matches!(answer, Err(AccountError::DeadToken));
    let revoked = world.token_error(signed_in) == Some(ErrorCode::RevokedToken);
    assert_eq!(refused, revoked, "both tokens of a log-in end together: {answer:?}");
    refused
}

pub async fn log_in_does_not_tell_whether_a_handle_exists(world: World) {
    world.sign_up("alice").await;
    for handle in ["alice", "bobby", "no handle"] {
        // The time that an answer takes is that of the hash.
        let hashed = world.figure("password_hashes");
        let answer = world.try_log_in(handle, "wrong", 1).await;
        assert_eq!(world.figure("password_hashes"), hashed + 1, "{handle}");
        let text = answer.expect_err(handle).to_string();
        assert_eq!(text, "wrong handle or password", "{handle}");
    }
    assert_eq!(world.figure("log_ins_wrong"), 3);
}

pub async fn an_old_refresh_token_ends_its_family(world: World) {
    world.sign_up("alice").await;
    let other = world.log_in("alice", 2).await;
    let first = world.log_in("alice", 3).await;
    let second = world.accounts.refresh(&first.refresh_token, None).await.expect("its first use");
    let third = world.accounts.refresh(&second.refresh_token, None).await.expect("its first use");
    assert_eq!(world.token_error(&first), None, "access tokens live on");
    let again = world.accounts.refresh(&first.refresh_token, None).await;
    assert!(matches!(again, Err(AccountError::DeadToken)), "{again:?}");
    assert!(is_dead(&world, &third).await, "the newest token of the family has ended, too");
    assert_eq!(world.figure("refresh_reuses"), 1);
    assert!(!is_dead(&world, &other).await, "other log-ins go on");

    for nonsense in ["", "x", "a.b.c", &"A".repeat(64), &"A".repeat(100_000)] {
        let answer = world.accounts.refresh(nonsense, None).await;
        assert!(matches!(answer, Err(AccountError::DeadToken)), "{nonsense}");
    }
}

pub async fn a_lost_answer_is_given_again_to_its_asker_alone(world: World) {
    let refresh =
        async |token: &SignedIn, key| world.accounts.refresh(&token.refresh_token, key).await;
    let first = world.sign_up("alice").await;
    let second = refresh(&first, Some("k1")).await.expect("its first use");
    world.pass_ms(1_000 * 3_600);
    let again = refresh(&first, Some("k1")).await.expect("the same request");
    assert_eq!(again.refresh_token, second.refresh_token);
    assert_eq!(world.token_error(&again), None, "its access token is new");
    assert_eq!(world.figure("refreshes_repeated"), 1);
    let third = refresh(&again, Some("k2")).await.expect("its first use");
    let late = refresh(&first, Some("k1")).await;
    assert!(matches!(late, Err(AccountError::DeadToken)), "its answer was used: {late:?}");
    assert!(is_dead(&world, &third).await);

    for key in [None, Some("other")] {
        let first = world.log_in("alice", 1).await;
        let second = refresh(&first, Some("k1")).await.expect("its first use");
        let thief = refresh(&first, key).await;
        assert!(matches!(thief, Err(AccountError::DeadToken)), "{key:?}");
        assert!(is_dead(&world, &second).await);
    }
    let long = "k".repeat(1_000);
    let answer = refresh(&first, Some(&long)).await;
    assert!(matches!(answer, Err(AccountError::Invalid { .. })), "{answer:?}");
}

pub async fn of_two_who_exchange_one_token_none_stays(world: World) {
    let first = world.sign_up("alice").await;
    let other = world.another().await;
    let (one, two) = tokio::join!(
        world.accounts.refresh(&first.refresh_token, None),
        other.accounts.refresh(&first.refresh_token, None),
    );
    let good: Vec<_> = [one, two].into_iter().filter_map(Result::ok).collect();
    assert_eq!(good.len(), 1);
    let next = world.accounts.refresh(&good[0].refresh_token, None).await;
    assert!(matches!(next, Err(AccountError::DeadToken)), "{next:?}");
    assert_eq!(world.count("sessions").await, 0);
}

pub async fn tokens_expire(world: World) {
    let first = world.sign_up("alice").await;
    world.pass_ms(1_000 * 610);
    assert_eq!(world.token_error(&first), Some(ErrorCode::ExpiredToken));
    let second = world.accounts.refresh(&first.refresh_token, None).await.expect("it lives");
    world.pass_ms(29 * 86_400_000);
    let third = world.accounts.refresh(&second.refresh_token, None).await.expect("it lives");
    world.pass_ms(30 * 86_400_000);
    let late = world.accounts.refresh(&third.refresh_token, None).await;
    assert!(matches!(late, Err(AccountError::DeadToken)), "{late:?}");
    assert_eq!(world.count("sessions").await, 1);
    world.accounts.clear_away().await.expect("nothing fails");
    assert_eq!(world.count("sessions").await, 0);
    assert_eq!(world.count("devices").await, 1);
}

pub async fn a_log_out_ends_one_log_in_or_all(world: World) {
    let bob = world.sign_up("bob").await;
    let first = world.sign_up("alice").await;
    let (second, third) = (world.log_in("alice", 2).await, world.log_in("alice", 3).await);
    let caller = world.caller(&second);
    world.accounts.log_out(&caller).await.expect("a log-out");
    world.accounts.log_out(&caller).await.expect("the same again");
    assert!(is_dead(&world, &second).await);
    assert_eq!((world.token_error(&first), world.token_error(&third)), (None, None));
    let second = world.log_in("alice", 2).await;
    world.accounts.log_out_everywhere(&world.caller(&first)).await.expect("a log-out");
    for ended in [&first, &second, &third] {
        assert!(is_dead(&world, ended).await);
    }
    assert!(!is_dead(&world, &bob).await);
    assert_eq!(world.figure("log_outs"), 4);
}

pub async fn a_new_password_ends_the_other_log_ins(world: World) {
    let first = world.sign_up("alice").await;
    let second = world.log_in("alice", 2).await;
    let caller = world.caller(&first);
    let change = async |old, new| world.accounts.change_password(&caller, old, new).await;
    let wrong = change("not the password", "a new password").await;
    assert!(matches!(wrong, Err(AccountError::WrongCredentials)), "{wrong:?}");
    let weak = change(PASSWORD, "weak").await;
    assert!(matches!(weak, Err(AccountError::Invalid { field: "password", .. })), "{weak:?}");
    change(PASSWORD, "a new password").await.expect("the old password was right");
    assert!(is_dead(&world, &second).await);
    assert!(!is_dead(&world, &first).await, "who changed it goes on");
    let old = world.try_log_in("alice", PASSWORD, 2).await;
    assert!(matches!(old, Err(AccountError::WrongCredentials)), "{old:?}");
    world.try_log_in("alice", "a new password", 2).await.expect("the new password");
}

pub async fn a_second_log_in_of_a_device_ends_the_first(world: World) {
    let first = world.sign_up("alice").await;
    let second = world.log_in("alice", 1).await;
    assert!(is_dead(&world, &first).await);
    assert!(!is_dead(&world, &second).await);
    assert_eq!(world.count("devices").await, 1);
}

pub async fn a_removed_device_does_not_come_back(world: World) {
    let first = world.sign_up("alice").await;
    world.pass_ms(1_000);
    let second = world.log_in("alice", 2).await;
    let bob = world.caller(&world.sign_up("bob").await);
    let caller = world.caller(&first);
    world
        .accounts
        .number_device(&first.account, &installation(2), DeviceId(7))
        .await
        .expect("a known device");
    let devices = world.accounts.devices(&caller).await.expect("a list");
    let seen: Vec<_> =
        devices.iter().map(|device| (device.installation, device.signed_in)).collect();
    let of = |device| installation(device);
    assert_eq!(seen, [(of(2), SignedInState::Yes), (of(1), SignedInState::Current)]);
    assert_eq!((devices[0].number, devices[1].number), (Some(DeviceId(7)), None));
    assert_eq!((&*devices[0].label, &*devices[1].label), ("", "phone"));

    let seventh = DeviceName::Number(DeviceId(7));
    for (caller, device) in [(&bob, seventh), (&caller, DeviceName::Number(DeviceId(0)))] {
        let answer = world.accounts.remove_device(caller, device).await;
        assert!(matches!(answer, Err(AccountError::UnknownDevice)), "{answer:?}");
    }
    let removed = world.accounts.remove_device(&caller, seventh).await.expect("a known device");
    assert_eq!(removed.installation, installation(2));
    assert!(is_dead(&world, &second).await);
    let back = world.try_log_in("alice", PASSWORD, 2).await;
    assert!(matches!(back, Err(AccountError::InstallationRemoved)), "{back:?}");
    let back = world.try_log_in("alice", "not the password", 2).await;
    assert!(matches!(back, Err(AccountError::WrongCredentials)), "{back:?}");
    world.log_in("alice", 3).await;
    assert_eq!(world.accounts.devices(&caller).await.expect("a list").len(), 2);
}

pub async fn of_too_many_devices_the_one_not_seen_for_longest_goes(world: World) {
    let first = world.sign_up("alice").await;
    let mut last = None;
    for device in 2..=limits::DEVICES_MAX as u8 {
        world.pass_ms(1_000);
        last = Some(world.log_in("alice", device).await);
    }
    world.pass_ms(1_000);
    let first = world.accounts.refresh(&first.refresh_token, None).await.expect("it is seen");
    world.log_in("alice", 100).await;
    let back = world.try_log_in("alice", PASSWORD, 2).await;
    assert!(matches!(back, Err(AccountError::InstallationRemoved)), "{back:?}");
    assert!(!is_dead(&world, &first).await);
    assert!(!is_dead(&world, &last.expect("many")).await);
    let devices = world.accounts.devices(&world.caller(&first)).await.expect("a list");
    assert_eq!(devices.len(), limits::DEVICES_MAX);
    assert_eq!(world.figure("revoked_log_ins"), 1);
}

pub async fn another_process_learns_what_was_revoked(world: World) {
    let other = world.another().await;
    let first = world.sign_up("alice").await;
    assert_eq!(other.token_error(&first), None);
    let second = world.log_in("alice", 2).await;
    world.accounts.log_out(&world.caller(&second)).await.expect("a log-out");
    let newest = other.accounts.read_revocations(0).await.expect("a read");
    assert_eq!(other.token_error(&second), Some(ErrorCode::RevokedToken));
    // By one whose clock is behind.
    let (caller, third) = (world.caller(&first), world.log_in("alice", 3).await);
    world.set_ms(world.now_ms() - 30_000);
    world.accounts.log_out(&caller).await.expect("a log-out");
    world.set_ms(world.now_ms() + 30_000);
    other.accounts.read_revocations(newest).await.expect("a read");
    assert_eq!(other.token_error(&first), Some(ErrorCode::RevokedToken));
    assert_eq!(other.token_error(&third), None);
    world.pass_ms(3_600_000);
    world.accounts.clear_away().await.expect("nothing fails");
    assert_eq!((world.count("revocations").await, world.figure("revoked_log_ins")), (0, 0));
}
