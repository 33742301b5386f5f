//! One suite of behaviours, run on SQLite and on PostgreSQL.

mod friends;
mod limits;
mod outbox;
mod postgres;
mod sessions;
mod sign_up;
mod tasks;
mod world;

use self::world::{Place, World};
use super::{Accounts, Caller, DeviceName, LogIn, ProfileChange, SignUp};

/// An HTTP handler's future must be `Send`, so these must be. Nothing of it is run.
#[allow(dead_code)]
fn futures_can_move_between_threads(
    accounts: &Accounts,
    caller: &Caller,
    (sign_up, log_in): (&SignUp, &LogIn),
    change: &ProfileChange,
    device: DeviceName,
) {
    fn check(_: impl Send) {}
    check(accounts.sign_up(world::FROM, sign_up));
    check(accounts.log_in(world::FROM, log_in));
    check(accounts.refresh("", None));
    check(accounts.change_password(caller, "", ""));
    check(accounts.remove_device(caller, device));
    check(accounts.change_profile(caller, change));
    check(accounts.befriend(caller, ""));
    check(accounts.friends(caller, None, 1));
    check(accounts.export(caller));
    check(accounts.delete_account(caller, ""));
    check(accounts.take_projections(1, std::time::Duration::ZERO));
    check(accounts.done(&[]));
}

/// Lists the behaviours: each is a test of its own on SQLite, and all of them are one test on
/// PostgreSQL, whose server is started for it.
macro_rules! suite {
    ($($module:ident :: $case:ident,)*) => {
        mod sqlite {
            $(
                #[tokio::test(flavor = "current_thread")]
                async fn $case() {
                    let folder = tempfile::tempdir().expect("a folder");
                    let place = super::Place::Sqlite(folder.path().to_owned());
                    super::$module::$case(super::World::new(place).await).await;
                }
            )*
        }

        #[test]
        fn all_behaviours_hold_on_postgres() {
            let Some(server) = postgres::Server::start() else { return };
            $(
                println!("on PostgreSQL: {}", stringify!($case));
                let place = Place::Postgres(server.database(stringify!($case)));
                world::block_on(async { $module::$case(World::new(place).await).await });
            )*
        }
    };
}

suite! {
    sign_up::a_user_signs_up_logs_in_and_refreshes,
    sign_up::a_taken_handle_and_its_likes_are_refused,
    sign_up::of_many_sign_ups_with_one_handle_one_succeeds,
    sign_up::bad_fields_are_refused_by_their_name,
    sign_up::sign_up_can_be_closed,
    sign_up::a_profile_is_changed_and_found,
    sign_up::accounts_outlive_a_restart,
    sign_up::a_newer_format_is_refused,
}
