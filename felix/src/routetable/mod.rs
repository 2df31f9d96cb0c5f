//! Routes: desired state and ownership (pure), and the netlink driver.
