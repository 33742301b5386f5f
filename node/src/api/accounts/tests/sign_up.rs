//! Signing up, and what is known of a user.

use std::os::unix::fs::PermissionsExt as _;

use chatring_wire::ErrorCode;
use serde_json::json;

use super::world::{FROM, PASSWORD, Place, World, installation, sign_up};
use crate::api::accounts::{
    AccountError, AccountId, Accounts, HandleError, OpenError, ProfileChange, SignUp,
};
use crate::config::SignUps;

pub async fn a_user_signs_up_logs_in_and_refreshes(world: World) {
    let signed_up = world.try_sign_up("Alice").await.expect("a free handle");
    assert_eq!(signed_up.profile.handle, "alice");
    assert_eq!(signed_up.profile.name, "alice");
    let first = signed_up.session.expect("an installation was named");
    assert_eq!(first.expires_in_s, 600);
    let caller = world.caller(&first);
    assert_eq!(caller.account, signed_up.profile.account);
    assert_eq!((caller.installation, caller.family), (installation(1), first.family));

    let second = world.log_in("ALICE", 2).await;
    assert_eq!(second.account, first.account);
    assert_ne!(second.family, first.family);
    world.pass_ms(300_000);
    let next = world.accounts.refresh(&second.refresh_token, None).await.expect("its first use");
    assert_eq!((next.family, next.installation), (second.family, installation(2)));
    assert_ne!(next.refresh_token, second.refresh_token);
    assert_ne!(next.access_token, second.access_token);
    let again = world.accounts.refresh(&next.refresh_token, None).await.expect("its first use");
    let me = world.accounts.me(&world.caller(&again)).await.expect("the account");
    assert_eq!(me.profile, signed_up.profile);
    assert_eq!(world.token_error(&first), None, "the first device goes on");
    assert_eq!((world.figure("sign_ups"), world.figure("log_ins")), (1, 1));
    assert_eq!(world.figure("refreshes"), 2);

    let silent = SignUp { installation: None, ..sign_up("bob") };
    let bob = world.accounts.sign_up(FROM, &silent).await.expect("a free handle");
    assert!(bob.session.is_none());
    assert_eq!(world.count("devices").await, 2);
}

pub async fn a_taken_handle_and_its_likes_are_refused(world: World) {
    world.sign_up("paypal").await;
    for handle in ["paypal", "PayPal", "ｐaypal", "paypa1"] {
        let answer = world.try_sign_up(handle).await;
        assert!(matches!(answer, Err(AccountError::HandleTaken)), "{handle}: {answer:?}");
    }
    world.sign_up("paypat").await;
    let answer = world.try_sign_up("аdmin").await;
    assert!(matches!(answer, Err(AccountError::Handle(HandleError::Mixed))), "{answer:?}");
    let answer = world.try_sign_up("Admin").await;
    assert!(matches!(answer, Err(AccountError::Handle(HandleError::Reserved))), "{answer:?}");
    assert_eq!(world.count("accounts").await, 2);
}

pub async fn of_many_sign_ups_with_one_handle_one_succeeds(world: World) {
    let other = world.another().await;
    let one = async |accounts: &Accounts| match accounts.sign_up(FROM, &sign_up("alice")).await {
        Ok(_) => 1,
        Err(AccountError::HandleTaken) => 0,
        Err(other) => panic!("{other:?}"),
    };
    let (a, b) = (&world.accounts, &other.accounts);
    let (p, q, r, s, t, u) = tokio::join!(one(a), one(b), one(a), one(b), one(a), one(b));
    assert_eq!(p + q + r + s + t + u, 1);
    assert_eq!((world.count("accounts").await, world.count("sessions").await), (1, 1));
}

pub async fn bad_fields_are_refused_by_their_name(world: World) {
    let good = sign_up("alice");
    let long = "x".repeat(1_000);
    let refused = [
        ("password", SignUp { password: "short".to_owned(), ..good.clone() }),
        ("password", SignUp { password: long.clone(), ..good.clone() }),
        ("name", SignUp { name: Some(String::new()), ..good.clone() }),
        ("name", SignUp { name: Some("  \u{3000}".to_owned()), ..good.clone() }),
        ("name", SignUp { name: Some(long.clone()), ..good.clone() }),
        ("name", SignUp { name: Some("a\u{202e}b".to_owned()), ..good.clone() }),
        ("name", SignUp { name: Some("a\0b".to_owned()), ..good.clone() }),
        ("label", SignUp { label: long, ..good.clone() }),
    ];
    for (field, bad) in refused {
        match world.accounts.sign_up(FROM, &bad).await {
            Err(AccountError::Invalid { field: named, .. }) => assert_eq!(named, field),
            other => panic!("{field}: {other:?}"),
        }
    }
    assert_eq!(world.figure("sign_ups_refused"), 8);
    assert_eq!(world.count("accounts").await, 0);
}

pub async fn sign_up_can_be_closed(world: World) {
    world.sign_up("alice").await;
    let world = world.reopened_with(|config| config.sign_up = SignUps::Closed).await;
    assert!(matches!(world.try_sign_up("bob").await, Err(AccountError::SignUpClosed)));
    world.log_in("alice", 1).await;
}

pub async fn a_profile_is_changed_and_found(world: World) {
    let alice = world.caller(&world.sign_up("alice").await);
    let bob = world.caller(&world.sign_up("bob").await);
    let settings = json!({ "theme": "dark", "n": [1, 2.5, null] });
    let change = ProfileChange {
        name: Some("Alice Ⅻ".to_owned()),
        status: Some("at sea".to_owned()),
        settings: settings.as_object().cloned(),
        ..ProfileChange::default()
    };
    let me = world.accounts.change_profile(&alice, &change).await.expect("a good change");
    assert_eq!((&*me.profile.name, &*me.profile.status), ("Alice Ⅻ", "at sea"));
    assert_eq!(Some(&me.settings), settings.as_object());
    let change = ProfileChange { avatar: Some("media/1".to_owned()), ..ProfileChange::default() };
    let me = world.accounts.change_profile(&alice, &change).await.expect("a good change");
    assert_eq!((&*me.profile.name, &*me.profile.avatar), ("Alice Ⅻ", "media/1"));
    assert_eq!(world.accounts.user("ALICE").await.expect("alice is there"), me.profile);
    for nobody in ["carol", "", "a b", "аlice"] {
        let answer = world.accounts.user(nobody).await;
        assert!(matches!(answer, Err(AccountError::UnknownUser)), "{nobody}");
    }
    let nobody = AccountId::parse(&"0".repeat(32)).expect("an id");
    let some = [alice.account.clone(), nobody, bob.account.clone()];
    let mut found = world.accounts.profiles(&some).await.expect("profiles");
    found.sort_by(|one, other| one.handle.cmp(&other.handle));
    let handles: Vec<_> = found.iter().map(|profile| &*profile.handle).collect();
    assert_eq!(handles, ["alice", "bob"]);

    let large = json!({ "x": "y".repeat(20_000) });
    for settings in [large, json!({ "x": "\0" })] {
        let settings = settings.as_object().cloned();
        let change = ProfileChange { settings, ..ProfileChange::default() };
        let answer = world.accounts.change_profile(&alice, &change).await;
        assert!(matches!(answer, Err(AccountError::Invalid { field: "settings", .. })));
    }
}

pub async fn accounts_outlive_a_restart(world: World) {
    let alice = world.sign_up("alice").await;
    let gone = world.log_in("alice", 2).await;
    world.accounts.log_out(&world.caller(&gone)).await.expect("a log-out");
    if let Place::Sqlite(folder) = &world.place {
        for file in std::fs::read_dir(folder).expect("the folder") {
            let mode = file.and_then(|file| file.metadata()).expect("a file").permissions().mode();
            assert_eq!(mode & 0o077, 0, "others can read it");
        }
    }
    let world = world.reopened_with(|_| {}).await;
    assert_eq!(world.token_error(&gone), Some(ErrorCode::RevokedToken));
    assert_eq!(world.token_error(&alice), None);
    world.accounts.refresh(&alice.refresh_token, None).await.expect("its first use");
    let answer = world.try_log_in("alice", PASSWORD, 3).await;
    assert_eq!(answer.expect("the password is kept").account, alice.account);
}

pub async fn a_newer_format_is_refused(world: World) {
    world.execute("INSERT INTO schema_versions (version) VALUES (1000)".to_owned()).await;
    let Place::Sqlite(folder) = &world.place else { return };
    let (key, _) = chatring_client::token::TokenKey::generate().expect("random bytes");
    let clock = crate::api::accounts::system_clock();
    let opened = Accounts::open(&world.config, folder, key.into(), <_>::default(), clock).await;
    match opened {
        Err(OpenError::Database(error)) => assert!(error.to_string().contains("format 1000")),
        other => panic!("{other:?}"),
    }
}

pub async fn a_database_that_fails_is_told_and_counted(world: World) {
    let alice = world.sign_up("alice").await;
    world.execute("DROP TABLE sessions".to_owned()).await;
    let failed = [
        world.try_sign_up("bob").await.map(drop),
        world.try_log_in("alice", PASSWORD, 1).await.map(drop),
        world.accounts.refresh(&alice.refresh_token, None).await.map(drop),
    ];
    for answer in failed {
        match answer {
            Err(AccountError::Database(_)) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(world.figure("database_errors"), 3);
    assert_eq!(world.count("accounts").await, 1, "nothing of bob is left");
}
