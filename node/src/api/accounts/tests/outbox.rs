//! What the chat store is told.

use std::time::Duration;

use super::world::{World, installation};
use crate::api::accounts::{Caller, Change, DeviceName, Projection};

const LEASE: Duration = Duration::from_secs(10);

async fn take(world: &World) -> Vec<Projection> {
    world.accounts.take_projections(100, LEASE).await.expect("a read")
}

fn relation(of: &Caller, peer: &Caller, friends: bool, blocked: bool) -> Change {
    Change::Relation { owner: of.account.clone(), peer: peer.account.clone(), friends, blocked }
}

fn sorted(mut taken: Vec<Projection>) -> Vec<Change> {
    taken.sort_by(|one, other| one.topic.cmp(&other.topic));
    taken.into_iter().map(|one| one.change).collect()
}

async fn two(world: &World) -> (Caller, Caller) {
    let (alice, bob) = (world.sign_up("alice").await, world.sign_up("bob").await);
    let (alice, bob) = (world.caller(&alice), world.caller(&bob));
    // So that the order of topics is known.
    if alice.account < bob.account { (alice, bob) } else { (bob, alice) }
}

async fn handle(world: &World, of: &Caller) -> String {
    world.accounts.me(of).await.expect("an account").profile.handle
}

pub async fn changes_are_given_until_they_are_done(world: World) {
    let (one, two) = two(&world).await;
    let names = (handle(&world, &one).await, handle(&world, &two).await);
    assert_eq!(take(&world).await, []);
    world.accounts.befriend(&one, &names.1).await.expect("a user");
    assert_eq!(take(&world).await, [], "a request is no matter of the chat store");
    world.accounts.befriend(&two, &names.0).await.expect("a user");
    world.accounts.projections_wait(Duration::from_secs(60)).await;
    let taken = take(&world).await;
    let both = [relation(&one, &two, true, false), relation(&two, &one, true, false)];
    assert_eq!(sorted(taken.clone()), both);
    assert_eq!(take(&world).await, [], "they are leased");
    world.pass_ms(10_000);
    let again = take(&world).await;
    assert_eq!(again, taken, "the taker has died");
    world.accounts.done(&again[..1]).await.expect("done");
    world.accounts.done(&again[..1]).await.expect("the same again");
    world.pass_ms(10_000);
    assert_eq!(take(&world).await, again[1..]);
    world.accounts.done(&again).await.expect("done");
    assert_eq!((world.count("outbox").await, world.figure("projections")), (0, 2));
}

pub async fn a_newer_change_takes_the_place_of_an_older_one(world: World) {
    let (one, two) = two(&world).await;
    let peer = handle(&world, &two).await;
    world.accounts.block(&one, &peer).await.expect("a user");
    let first = take(&world).await;
    assert_eq!(sorted(first.clone()), [relation(&one, &two, false, true)]);
    world.accounts.unblock(&one, &peer).await.expect("a user");
    let second = take(&world).await;
    assert_eq!(sorted(second.clone()), [relation(&one, &two, false, false)]);
    assert_eq!(second[0].topic, first[0].topic);
    assert!(second[0].version > first[0].version);
    world.accounts.done(&first).await.expect("it does nothing any more");
    assert_eq!(world.count("outbox").await, 1);
    world.accounts.done(&second).await.expect("done");
    world.accounts.block(&one, &peer).await.expect("a user");
    let third = take(&world).await;
    assert!(third[0].version > second[0].version, "versions rise over the end of a row");
}

pub async fn ended_devices_are_told(world: World) {
    let first = world.sign_up("alice").await;
    world.log_in("alice", 2).await;
    let third = world.log_in("alice", 3).await;
    world.log_in("alice", 1).await;
    assert_eq!(take(&world).await, [], "a log-in on the same device is told by its own token");
    let caller = world.caller(&third);
    world.pass_ms(1_000);
    let second = DeviceName::Installation(installation(2));
    world.accounts.remove_device(&caller, second).await.expect("a device");
    world.accounts.log_out(&caller).await.expect("a log-out");
    let taken = take(&world).await;
    assert!(taken.iter().all(|one| one.at_ms == world.now_ms()), "{taken:?}");
    let account = || first.account.clone();
    let told = [
        Change::DeviceRemoved { account: account(), installation: installation(2) },
        Change::DeviceSignedOut { account: account(), installation: installation(3) },
    ];
    assert_eq!(sorted(taken), told);
}
