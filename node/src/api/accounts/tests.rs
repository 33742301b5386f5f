//! One suite of behaviours, run on SQLite and on PostgreSQL.

mod friends;
mod killed;
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
    sign_up::a_database_that_fails_is_told_and_counted,
    sessions::log_in_does_not_tell_whether_a_handle_exists,
    sessions::an_old_refresh_token_ends_its_family,
    sessions::a_lost_answer_is_given_again_to_its_asker_alone,
    sessions::of_two_who_exchange_one_token_none_stays,
    sessions::tokens_expire,
    sessions::a_log_out_ends_one_log_in_or_all,
    sessions::a_new_password_ends_the_other_log_ins,
    sessions::a_second_log_in_of_a_device_ends_the_first,
    sessions::a_removed_device_does_not_come_back,
    sessions::of_too_many_devices_the_one_not_seen_for_longest_goes,
    sessions::another_process_learns_what_was_revoked,
    friends::friends_ask_accept_refuse_and_part,
    friends::who_is_blocked_does_not_learn_it,
    friends::two_who_ask_at_once_are_friends,
    friends::lists_come_in_pages,
    friends::requests_are_bounded,
    outbox::changes_are_given_until_they_are_done,
    outbox::a_newer_change_takes_the_place_of_an_older_one,
    outbox::ended_devices_are_told,
    limits::sign_ups_and_log_ins_are_bounded_by_address,
    limits::wrong_passwords_are_bounded_by_handle_and_lock_no_device_out,
    limits::a_flood_of_log_ins_is_answered_busy,
    tasks::everything_of_mine_is_exported,
    tasks::a_deleted_account_is_gone_and_its_handle_retired,
    tasks::a_deletion_in_many_steps_outlives_a_crash,
    tasks::a_task_that_fails_is_tried_again_and_ends_with_the_dead_letters,
}
