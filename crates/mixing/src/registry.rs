//! A registry is an enum: one variant a type, called as the type is. [`registry`] writes it down from one line a type.

/// Declares the enum, and for all its variants at once what otherwise each needed a `match` arm for: the trait object
/// behind a variant, its name, and the instances that tests iterate over.
///
/// `instances` takes the parameters of the trait's function of that name, once as declared and once as passed on.
macro_rules! registry {
    (
        $(#[$about:meta])*
        pub enum $registry:ident: $trait:ident, instances $parameters:tt $arguments:tt -> $instance:ident {
            $($(#[$doc:meta])* $variant:ident,)*
        }
    ) => {
        $(#[$about])*
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        pub enum $registry {
            $($(#[$doc])* $variant($variant),)*
        }

        impl $registry {
            /// All names, in the order of the registry.
            pub const NAMES: &[&str] = &[$(stringify!($variant)),*];

            /// The name of this one.
            pub fn name(&self) -> &'static str {
                match self {
                    $(Self::$variant(_) => stringify!($variant),)*
                }
            }

            /// Instances of every variant, for tests.
            pub fn instances $parameters -> Vec<$instance> {
                let mut all = Vec::new();
                $(
                    let instances = <$variant as $trait>::instances $arguments.into_iter();
                    all.extend(instances.map(|instance| instance.map(Self::$variant)));
                )*
                all
            }

            fn variant(&self) -> &dyn $trait {
                match self {
                    $(Self::$variant(variant) => variant,)*
                }
            }

            #[allow(dead_code, reason = "not every registry is changed in place")]
            fn variant_mut(&mut self) -> &mut dyn $trait {
                match self {
                    $(Self::$variant(variant) => variant,)*
                }
            }
        }
    };
}

pub(crate) use registry;
